"""Small language models for tests: of random weights, or trained on docstrings of installed libraries.

Classification asks which library a docstring belongs to. Question answering names a word, and the answer is where it
stands in the docstring. Both texts and tokenizer come from the installed packages, so no network is needed.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from torch.nn import functional as F

from qplug.data.text import Text
from qplug.models.transformers import CLASSES

LIBRARIES = ("numpy", "scipy", "sklearn", "torch", "matplotlib")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu".split()
TASKS = ("sequence_classification", "question_answering")
KINDS = ("bert", "distilbert")
LENGTH = 40
ANSWERS = {"text_column": "word", "pair_column": "text", "answer_column": "answers"}
"""Columns of questions in the files of ``write_texts``."""


def docstrings(library: str, count: int) -> list[str]:
    """The beginnings of docstrings in a library's source, drawn alike in every run."""
    spec = importlib.util.find_spec(library)
    files = sorted(Path(spec.submodule_search_locations[0]).rglob("*.py"))
    found: dict[str, None] = {}
    for path in random.Random(0).sample(files, len(files)):  # all of torch would take a minute to parse
        if "tests" in path.parts or len(found) >= count:
            continue
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                text = " ".join((ast.get_docstring(node) or "").split())
                if len(text) > 60:
                    found.setdefault(text[:200])
    return list(found)[:count]


def write_texts(folder: Path, train: int, test: int, libraries: Sequence[str] = LIBRARIES) -> None:
    """``train.jsonl`` and ``test.jsonl``: text, label, and a word of the text with its place."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    for label, library in enumerate(libraries):
        for index, text in enumerate(docstrings(library, train + test)):
            words = list(re.finditer(r"[A-Za-z]{4,}", text[:80]))
            words = [word for word in words if text.lower().count(word[0].lower()) == 1]
            if not words:
                continue
            word = draw.choice(words)
            answers = {"text": [word[0]], "answer_start": [word.start()]}
            row = {"text": text, "label": label, "word": word[0], "answers": answers}
            splits["train" if index < train else "test"].append(row)
    for split, rows in splits.items():
        draw.shuffle(rows)
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def word_pieces(texts: Sequence[str], size: int) -> Tokenizer:
    """BERT's WordPiece over the commonest words of these texts, and single characters for what is rarer.

    ``tokenizers`` can train one, but breaks ties in another way each time.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    normal = (tokenizer.normalizer.normalize_str(text) for text in texts)
    counts = Counter(word for text in normal for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text))
    letters = sorted({letter for word in counts for letter in word})
    common = sorted((word for word in counts if len(word) > 1), key=lambda word: (-counts[word], word))
    pieces = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *common][:size]
    tokenizer.model = models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def write_model(
    folder: Path, kind: str, task: str, tokenizer: Tokenizer, width: int = 32, depth: int = 2, classes: int = 3
) -> nn.Module:
    """A model of random weights in a folder, as ``save_pretrained`` lays it out; also returns it."""
    import transformers

    quiet()
    words, heads, places = tokenizer.get_vocab_size(), 2, 64
    common = {"vocab_size": words, "max_position_embeddings": places, "num_labels": 2 if task[0] == "q" else classes}
    if kind == "bert":
        config = transformers.BertConfig(
            hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, intermediate_size=2 * width, **common
        )
    else:
        config = transformers.DistilBertConfig(dim=width, n_layers=depth, n_heads=heads, hidden_dim=2 * width, **common)
    torch.manual_seed(1)  # not the seed with which an architecture is made
    model = getattr(transformers, CLASSES[kind, task])(config)
    model.save_pretrained(folder)
    special = {f"{name.strip('[]').lower()}_token": name for name in SPECIAL}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return model


def quiet() -> None:
    """No bars while models are written."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def places(labels: Sequence[Any]) -> torch.Tensor:
    """The classes (N,), or the tokens (N, 2) of answers."""
    return torch.tensor([label if isinstance(label, int) else (label.start, label.end) for label in labels])


def train(folder: Path, texts: Path, task: str, epochs: int, rate: float = 1e-3) -> float:
    """Train the model in ``folder`` on ``train.jsonl`` and write it again; returns its top-1 on ``test.jsonl``."""
    from qplug.data.loading import batches
    from qplug.models.transformers import TransformersModel

    columns = ANSWERS if task == "question_answering" else {}
    config = TransformersModel.Config(source="transformers", path=str(folder), task=task, max_length=LENGTH)
    source = TransformersModel(config).load()
    model, transform = source.module.train().requires_grad_(True), source.preprocessing.transform()
    data = {}
    for split in ("train", "test"):
        examples = Text(Text.Config(source="text", path=str(texts), split=split, **columns)).open(0)
        (data[split],) = batches(examples, transform, len(examples), collect=places)
    inputs, labels = data["train"]
    torch.manual_seed(0)
    steps = epochs * (len(inputs) // 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        if step % (len(inputs) // 32) == 0:
            order = torch.randperm(len(inputs))
        chosen = order[step % (len(inputs) // 32) * 32 :][:32]
        logits = model(inputs[chosen])
        loss = F.cross_entropy(logits.flatten(0, -2), labels[chosen].flatten(), ignore_index=-1)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval().model.save_pretrained(folder)
    with torch.no_grad():
        right = model(data["test"][0]).argmax(-1) == data["test"][1]
    return float(right.reshape(len(right), -1).all(1).float().mean())


def random_language(folder: Path) -> Path:
    """Models of random weights in ``<kind>-<task>``, and texts of random words in ``texts``."""
    draw = random.Random(0)
    (folder / "texts").mkdir()
    for split in ("train", "test"):
        with (folder / "texts" / f"{split}.jsonl").open("w") as file:
            for index in range(12):
                words = draw.choices(WORDS, k=draw.randint(3, 14))
                place = draw.randrange(len(words))
                start = len(" ".join([*words[:place], ""]))
                answers = {"text": [words[place]], "answer_start": [start]}
                row = {"text": " ".join(words), "label": index % 3, "word": words[place], "answers": answers}
                file.write(json.dumps(row) + "\n")
    tokenizer = word_pieces(WORDS * 3, 120)
    for kind in KINDS:
        for task in TASKS:
            write_model(folder / f"{kind}-{task}", kind, task, tokenizer)
    return folder


def trained_language(folder: Path) -> Path:
    """A trained model of each kind, each for another task, in ``<kind>-<task>``, and docstrings in ``texts``."""
    write_texts(folder / "texts", train=500, test=100)
    with (folder / "texts" / "train.jsonl").open() as file:
        tokenizer = word_pieces([json.loads(line)["text"] for line in file], 1500)
    for kind, task, epochs in zip(KINDS, TASKS, (10, 16), strict=True):
        place = folder / f"{kind}-{task}"
        write_model(place, kind, task, tokenizer, width=64, depth=3, classes=len(LIBRARIES))
        train(place, folder / "texts", task, epochs, rate=2e-3)
    return folder


def recipe_of(
    language: Path, kind: str, task: str, bits: int, techniques: Sequence[dict[str, Any]], length: int = 16, **data: Any
) -> Any:
    """A validated recipe: calibrate on ``train``, evaluate on ``test``, weights at ``bits``, activations at 8."""
    from qplug.hooks.registry import installed
    from qplug.recipe import recipe_type

    columns = ANSWERS if task == "question_answering" else {}
    texts = {"source": "text", "path": str(language / "texts"), **columns}
    return recipe_type(installed()).model_validate(
        {
            "version": 1,
            "model": {"source": "transformers", "path": str(language / f"{kind}-{task}"), "task": task}
            | {"max_length": length},
            "data": {
                "calibration": {**texts, "split": "train", **data},
                "evaluation": {**texts, "split": "test"},
                "batch_size": 8,
            },
            "quantize": {
                "weights": {"bits": bits, "symmetric": False},
                "activations": {"bits": 8, "symmetric": False},
            },
            "techniques": list(techniques),
        }
    )
