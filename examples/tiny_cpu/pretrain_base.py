"""Make the example's tokenizer and pre-train its tiny Llama on a 256-token window (about ten minutes).

    OMP_NUM_THREADS=1 python examples/tiny_cpu/pretrain_base.py --output runs/tiny_cpu/base

It stands in for a model from elsewhere, so it is plain transformers and knows nothing of Megatron. Options
make a larger model; where there is a GPU, it trains there, in bf16.
"""

import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from cyclopts import App, Parameter
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from megatron_longrope2.cli import run_main
from megatron_longrope2.data.documents import Document, read_books
from megatron_longrope2.data.needles import NeedleSampler, key_pool
from megatron_longrope2.data.wording import SHORT
from megatron_longrope2.files import replacing

HERE = Path(__file__).parent
WARM_UP_SHARE = 0.15


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Settings:
    """The model and its training; the defaults are the example's base.

    Attributes:
        original_length: The window, in tokens.
        vocabulary: The entries of the tokenizer.
        layers: The layers of the model.
        hidden_size: The width of the model.
        intermediate_size: The width of the MLPs.
        heads: The attention heads, of 64 each.
        steps: The optimizer steps.
        tokens_per_step: The tokens of an optimizer step.
        learning_rate: The highest learning rate.
        seed: The seed of weights, text and needles.
    """

    original_length: int = 256
    vocabulary: int = 1024
    layers: int = 4
    hidden_size: int = 128
    intermediate_size: int = 320
    heads: int = 2
    steps: int = 1800
    tokens_per_step: int = 4096
    learning_rate: float = 3e-3
    seed: int = 0

    def length(self, step: int) -> int:
        """The tokens of a row: fewer at first."""
        return 3 * self.original_length // 8 if step <= WARM_UP_SHARE * self.steps else self.original_length


def make_tokenizer(books: list[Document], settings: Settings) -> PreTrainedTokenizerFast:
    """Byte-level BPE with single-digit tokens, trained on the books and on needle sentences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng = random.Random(settings.seed)
    sentences = [
        (SHORT.opening + SHORT.needle + SHORT.question).format(key=key, value=rng.randrange(10**6, 10**7))
        for key in key_pool("train")
    ]
    tokenizer.train_from_iterator([book.text for book in books] + sentences, trainer)
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", bos)]
            ),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=settings.original_length,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, settings: Settings) -> LlamaForCausalLM:
    """A Llama with heads of 64 and tied embeddings; 0.9 M parameters with the defaults."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=settings.hidden_size,
            intermediate_size=settings.intermediate_size,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            num_key_value_heads=settings.heads,
            head_dim=64,
            max_position_embeddings=settings.original_length,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


class Rows(IterableDataset[tuple[torch.Tensor, torch.Tensor]]):
    """Training batches: half of the rows are slices of the books, half are needle questions."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, books: list[Document], settings: Settings) -> None:
        self.settings = settings
        self.rng = random.Random(settings.seed)
        self.needles = NeedleSampler(tokenizer, books, seed=settings.seed, keys="train")
        self.bos = tokenizer.bos_token_id
        ids: list[int] = []
        for book in books:
            ids += tokenizer(book.text, add_special_tokens=False, verbose=False)["input_ids"]
            ids.append(tokenizer.eos_token_id)
        self.text = torch.tensor(ids)
        self.drawn = 0

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """One batch per step."""
        for step in range(1, self.settings.steps + 1):
            yield self.batch(self.settings.length(step))

    def batch(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and answer mask, each [tokens_per_step // length, length]."""
        count = self.settings.tokens_per_step // length
        rows = [self._needle(length) if i % 2 else self._text(length) for i in range(count)]
        return torch.stack([row for row, _ in rows]), torch.stack([mask for _, mask in rows])

    def _needle(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.drawn += 1
        sample = self.needles.sample(self.drawn, length, self.rng.random())
        return sample.tokens, sample.answer_mask

    def _text(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        start = self.rng.randrange(len(self.text) - length)
        row = self.text[start : start + length].clone()
        # A document may or may not come with its BOS: the model must read both.
        if self.rng.random() < 0.5:
            row[0] = self.bos
        return row, torch.zeros(length, dtype=torch.bool)


def learning_rate_share(step: int, steps: int) -> float:
    """Warm-up over 100 steps, constant until half of the steps are done, then linear to 1 %."""
    decay = max(0.0, (step - steps / 2) / (steps / 2))
    return min(1.0, (step + 1) / 100) * (1 - 0.99 * decay)


def train(model: LlamaForCausalLM, rows: Rows) -> Iterator[str]:
    """Train in place; yield a log line every 50 steps."""
    settings, where = rows.settings, model.device
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.0
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_share(step, settings.steps)
    )
    begin = time.monotonic()
    # A process of its own makes the batches, or a GPU would wait for the tokenizer.
    batches = DataLoader(rows, batch_size=None, num_workers=0 if where.type == "cpu" else 1)
    bar = tqdm(enumerate(batches, start=1), total=settings.steps, desc="pre-training", unit="step")
    for step, batch in bar:
        tokens, answers = (part.to(where) for part in batch)
        with torch.autocast(where.type, torch.bfloat16, enabled=where.type == "cuda"):
            logits = model(tokens, use_cache=False).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(
            logits.float().transpose(1, 2), tokens[:, 1:], reduction="none"
        )
        answer_loss = losses[answers[:, 1:]].mean()
        text_loss = losses[::2].mean()
        (losses.mean() + answer_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            bar.set_postfix(text=f"{text_loss:.3f}", answer=f"{answer_loss:.3f}")
            yield (
                f"step {step:5d}  window {tokens.shape[1]:3d}  text loss {text_loss:.4f}  "
                f"answer loss {answer_loss:.4f}  seconds {time.monotonic() - begin:.0f}"
            )


@torch.no_grad()
def evaluate(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, books: list[Document]) -> str:
    """Held-out needle accuracy (whole answers, 200 samples) and text perplexity at the original length."""
    model.eval()
    length = model.config.max_position_embeddings
    sampler = NeedleSampler(tokenizer, books, seed=1, keys="held_out")
    samples = list(sampler.samples(200, length, [k / 10 for k in range(11)]))
    exact = 0
    answer_loss = 0.0
    for sample in samples:
        tokens, mask = sample.tokens.to(model.device), sample.answer_mask[1:].to(model.device)
        logits = model(tokens[None]).logits[0, :-1]
        target = tokens[1:][mask]
        exact += bool((logits[mask].argmax(-1) == target).all())
        answer_loss += torch.nn.functional.cross_entropy(logits[mask], target).item() / len(samples)
    losses = []
    for book in books:
        ids = tokenizer(book.text, add_special_tokens=False, verbose=False)["input_ids"]
        for start in range(0, min(len(ids) - length, 20 * length), length):
            row = torch.tensor([[tokenizer.bos_token_id, *ids[start : start + length - 1]]])
            row = row.to(model.device)
            losses.append(model(row, labels=row).loss)
    return (
        f"held-out books and keys at {length} tokens: needle accuracy {exact / len(samples):.3f}, "
        f"needle perplexity {math.exp(answer_loss):.4f}, "
        f"text perplexity {torch.stack(losses).mean().exp():.3f}"
    )


app = App(name="examples/tiny_cpu/pretrain_base.py", help=__doc__, help_format="plaintext")


@app.default
def main(*, output: Path, books: Path = HERE / "books", settings: Settings = Settings()) -> None:
    """Make the tokenizer, pre-train the model and save both.

    Args:
        output: The folder of the Hugging Face model to make.
        books: The folder of the texts, in train/ and held_out/.
    """
    torch.manual_seed(settings.seed)
    texts = read_books(books / "train")
    tokenizer = make_tokenizer(texts, settings)
    model = make_model(tokenizer, settings).to("cuda" if torch.cuda.is_available() else "cpu")
    log = [f"seed {settings.seed}, {settings.steps} steps, {model.num_parameters():,} parameters"]
    for line in train(model, Rows(tokenizer, texts, settings)):
        log.append(line)
        print(line, flush=True)
    log.append(evaluate(model, tokenizer, read_books(books / "held_out")))
    print(log[-1])

    with replacing(output) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        (partial / "pretrain_base.log").write_text("\n".join(log) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_main(app)
