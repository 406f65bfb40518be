"""Write a full-size ViLT-B/32 with random weights, for timing: latency does not depend on the weights' values."""

import argparse
import json
import string
from pathlib import Path

import torch
from torch import nn
from transformers import ViltConfig, ViltForImageAndTextRetrieval, ViltForQuestionAnswering, ViltPreTrainedModel

VOCABULARY = 30_522  # of bert-base-uncased
WORDS = """
    a an the is are was there this that it in on of to at with by for from and or not no yes what which who where
    when why how many much color colour kind type time day number name shape man woman boy girl person people child
    dog cat horse bird cow sheep elephant bear zebra giraffe car bus train truck boat plane bike bicycle motorcycle
    road street sign light traffic building house room kitchen bathroom table chair bed couch window door wall floor
    ceiling sky cloud sun tree grass flower plant water beach sand snow mountain food pizza cake sandwich fruit
    apple banana orange plate bowl cup glass bottle fork knife spoon phone laptop computer keyboard mouse screen
    television clock book hat shirt shoe dress bag ball bat racket skateboard surfboard umbrella red blue green
    yellow black white brown pink purple gray big small tall short left right above below behind front next near
    doing wearing holding sitting standing walking riding playing eating drinking looking picture photo image see
    visible does do have has can could would be two three four five six seven eight nine ten
"""


def vocabulary() -> list[str]:
    """List a WordPiece vocabulary of BERT's size in which common words of questions are one token, as in BERT's."""
    letters = string.ascii_lowercase + string.digits
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.punctuation, *letters]
    tokens += [f"##{letter}" for letter in letters]
    tokens += [word for word in dict.fromkeys(WORDS.split()) if word not in tokens]
    return tokens + [f"[unused{index}]" for index in range(VOCABULARY - len(tokens))]


def redraw(module: nn.Module, seed: int) -> None:
    """Redraw every parameter: transformers starts positions, cls token and biases at zero, which is not typical."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            is_scale = parameter.ndim == 1 and name.endswith("weight")
            parameter.normal_(1.0 if is_scale else 0.0, 0.02, generator=generator)


def write(folder: Path, config: ViltConfig, kind: type[ViltPreTrainedModel] = ViltForQuestionAnswering) -> None:
    """Write weights, vocabulary and image processor settings of a model, by default a question answering one."""
    model = kind(config)
    redraw(model, seed=0)
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary()[: config.vocab_size]) + "\n")
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": 384}}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m export.random_checkpoint", description=__doc__)
    parser.add_argument("output", type=Path, metavar="DIR", help="the checkpoint folder to write")
    parser.add_argument(
        "--task", choices=("vqa", "rank"), default="vqa", help="task that its head is for (default: %(default)s)"
    )
    options = parser.parse_args()
    answers = {index: f"answer {index}" for index in range(3129)}  # as many as the public VQA checkpoint has
    config = ViltConfig(id2label=answers, label2id={answer: index for index, answer in answers.items()})
    write(options.output, config, ViltForQuestionAnswering if options.task == "vqa" else ViltForImageAndTextRetrieval)


if __name__ == "__main__":
    main()
