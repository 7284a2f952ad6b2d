"""Make the example's tokenizer and pre-train its tiny Llama on a 256-token window (about ten minutes).

    OMP_NUM_THREADS=1 python examples/tiny_cpu/pretrain_base.py --output runs/tiny_cpu/base

It stands in for a model from elsewhere, so it is plain transformers and knows nothing of Megatron.
"""

import argparse
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from megatron_longrope2.data.books import Book, read_books
from megatron_longrope2.data.needle_keys import key_pool
from megatron_longrope2.data.needles import NEEDLE, OPENING, QUESTION, NeedleSampler
from megatron_longrope2.errors import run_main
from megatron_longrope2.files import replacing

HERE = Path(__file__).parent
ORIGINAL_LENGTH = 256
WARM_UP_LENGTH = 96
WARM_UP_SHARE = 0.15
TOKENS_PER_STEP = 4096
VOCABULARY = 1024
LEARNING_RATE = 3e-3


def make_tokenizer(books: list[Book], seed: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 1024 with single-digit tokens, trained on the books and on needle sentences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng = random.Random(seed)
    sentences = [
        (OPENING + NEEDLE + QUESTION).format(kind="number", key=key, value=rng.randrange(10**6, 10**7))
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
        model_max_length=ORIGINAL_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of 0.9 M parameters: 4 layers, width 128, 2 heads of 64, tied embeddings."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=320,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=64,
            max_position_embeddings=ORIGINAL_LENGTH,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


class Rows:
    """Training batches: half of the rows are slices of the books, half are needle questions."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, books: list[Book], seed: int) -> None:
        self.rng = random.Random(seed)
        self.needles = NeedleSampler(tokenizer, books, seed=seed, keys="train")
        self.bos = tokenizer.bos_token_id
        ids: list[int] = []
        for book in books:
            ids += tokenizer(book.text, add_special_tokens=False, verbose=False)["input_ids"]
            ids.append(tokenizer.eos_token_id)
        self.text = torch.tensor(ids)
        self.drawn = 0

    def batch(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and answer mask, each [TOKENS_PER_STEP // length, length]."""
        rows = [
            self._needle(length) if i % 2 else self._text(length) for i in range(TOKENS_PER_STEP // length)
        ]
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
    """Warm-up over 100 steps, constant to the half, then linear to 1 %."""
    decay = max(0.0, (step - steps / 2) / (steps / 2))
    return min(1.0, (step + 1) / 100) * (1 - 0.99 * decay)


def train(model: LlamaForCausalLM, rows: Rows, steps: int) -> Iterator[str]:
    """Train in place; yield a log line every 50 steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_share(step, steps))
    begin = time.monotonic()
    bar = tqdm(range(1, steps + 1), desc="pre-training", unit="step")
    for step in bar:
        length = WARM_UP_LENGTH if step <= WARM_UP_SHARE * steps else ORIGINAL_LENGTH
        tokens, answers = rows.batch(length)
        logits = model(tokens, use_cache=False).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
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
                f"step {step:5d}  window {length:3d}  text loss {text_loss:.4f}  "
                f"answer loss {answer_loss:.4f}  seconds {time.monotonic() - begin:.0f}"
            )


@torch.no_grad()
def evaluate(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, books: list[Book]) -> str:
    """Held-out needle accuracy (whole answers, 200 samples) and text perplexity at the original length."""
    model.eval()
    sampler = NeedleSampler(tokenizer, books, seed=1, keys="held_out")
    samples = list(sampler.samples(200, ORIGINAL_LENGTH, [k / 10 for k in range(11)]))
    exact = 0
    answer_loss = 0.0
    for sample in samples:
        logits = model(sample.tokens[None]).logits[0, :-1]
        mask = sample.answer_mask[1:]
        target = sample.tokens[1:][mask]
        exact += bool((logits[mask].argmax(-1) == target).all())
        answer_loss += torch.nn.functional.cross_entropy(logits[mask], target).item() / len(samples)
    losses = []
    for book in books:
        ids = tokenizer(book.text, add_special_tokens=False, verbose=False)["input_ids"]
        for start in range(0, min(len(ids) - ORIGINAL_LENGTH, 20 * ORIGINAL_LENGTH), ORIGINAL_LENGTH):
            row = torch.tensor([[tokenizer.bos_token_id, *ids[start : start + ORIGINAL_LENGTH - 1]]])
            losses.append(model(row, labels=row).loss)
    return (
        f"held-out books and keys at {ORIGINAL_LENGTH} tokens: needle accuracy {exact / len(samples):.3f}, "
        f"needle perplexity {math.exp(answer_loss):.4f}, "
        f"text perplexity {torch.stack(losses).mean().exp():.3f}"
    )


def _main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the Hugging Face model to make")
    parser.add_argument("--books", type=Path, default=HERE / "books", help="folder with train/ and held_out/")
    parser.add_argument("--steps", type=int, default=1800, help="optimizer steps of 4096 tokens")
    parser.add_argument("--seed", type=int, default=0, help="of weights, text and needles")
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    books = read_books(arguments.books / "train")
    tokenizer = make_tokenizer(books, arguments.seed)
    model = make_model(tokenizer)
    log = [f"seed {arguments.seed}, {arguments.steps} steps, {model.num_parameters():,} parameters"]
    for line in train(model, Rows(tokenizer, books, arguments.seed), arguments.steps):
        log.append(line)
        print(line, flush=True)
    log.append(evaluate(model, tokenizer, read_books(arguments.books / "held_out")))
    print(log[-1])

    with replacing(arguments.output) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        (partial / "pretrain_base.log").write_text("\n".join(log) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_main(_main)
