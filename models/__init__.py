"""The contract between export and server: ViLT's shapes, pixels, tokens and answers. No torch, no clock, no HTTP."""
