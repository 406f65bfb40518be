"""The recipe of `shapes`, the small artifact that the repository ships: scenes, questions, training."""
