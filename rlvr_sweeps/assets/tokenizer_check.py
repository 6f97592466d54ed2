r"""Check that transformers loads the tokenizer that a model's tokenizer.json describes.

tokenizer_config.json names a class, and some classes of transformers 5 replace the rules of tokenizer.json by their own: with
LlamaTokenizer, the byte-level tokenizer of the R1-distilled Llamas loses spaces and newlines without an error
(https://github.com/huggingface/transformers/issues/45488).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlvr_sweeps.errors import Refused

SNIPPETS = (
    "Hello world", "How many of the 17 students passed?", "It's the teacher's book, isn't it?", "THE END", "iPhone15Pro",
    "0", "7", "42", "100", "1234567890", "3.14159", "1,000,000", "-12", "2024-05-17", "50%", "$9.99", "10^{-6}", "0x1F",
    r"\boxed{42}", r"$x^2 + y^2 = z^2$", r"\frac{a}{b} \cdot \sqrt{2}", r"\begin{align*} a &= b \\ c &= d \end{align*}",
    r"\left( \frac{1}{2} \right)", r"\sum_{i=1}^{n} i = \frac{n(n+1)}{2}", r"\text{if } x \geq 0", r"90^\circ",
    "def f(x):\n    if x < 2:\n        return x\n    return f(x - 1)", "for (int i = 0; i < n; i++) { a[i] += 2; }",
    "x = [1, 2, 3]  # a list", "print('a\\tb')", "a\tb\tc", "{\"key\": null}", "<div class='a'>text</div>", "https://a.org/b?c=d&e",
    "Grüße", "naïve café", "Ελληνικά", "Привет, мир", "你好,世界", "日本語のテキスト", "안녕하세요", "مرحبا", "π ≈ 3.14",
    "∀x ∈ ℝ: x² ≥ 0", "😀👍🏽", "e\u0301", "ﬁn", "½", "“quoted” – dash — dash", "…",
    "!?", "a_b-c/d", "----", "===", "\\n", "wait... what",
)  # fmt: skip


def texts() -> Iterator[str]:
    """Yield several hundred short texts of code, LaTeX, digits, several scripts, spaces and newlines."""
    for index, snippet in enumerate(SNIPPETS):
        following = SNIPPETS[(index + 1) % len(SNIPPETS)]
        yield from (snippet, f" {snippet}", f"  {snippet}\n", f"{snippet}\n\n{following}", f"{snippet} {following}   {snippet}")
        yield f"{snippet}{following}"


def difference(tokenizer: Any, file: Path) -> str | None:
    """Return a sentence on the first text that a tokenizer encodes or decodes otherwise than `file`, its tokenizer.json."""
    from tokenizers import Tokenizer

    reference = Tokenizer.from_file(str(file))
    reference.no_truncation()
    reference.no_padding()
    samples = list(texts())
    encoded: list[list[int]] = tokenizer(samples, add_special_tokens=False)["input_ids"]
    expected_ids = [encoding.ids for encoding in reference.encode_batch(samples, add_special_tokens=False)]
    decoded = tokenizer.batch_decode(expected_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    expected_texts = reference.decode_batch(expected_ids, skip_special_tokens=False)
    for text, ids, expected in zip(samples, encoded, expected_ids, strict=True):
        if ids != expected:
            return f"It encodes {text!r} as {reference.decode(ids, skip_special_tokens=False)!r}"
    for own_text, expected_text in zip(decoded, expected_texts, strict=True):
        if own_text != expected_text:
            return f"It decodes {expected_text!r} as {own_text!r}"
    return None


def refuse_other_tokenizer(tokenizer: Any, file: Path, model: str) -> None:
    """Raise Refused where transformers loaded another tokenizer than the one that `file`, the tokenizer.json, describes."""
    wrong = difference(tokenizer, file)
    if wrong:
        raise Refused(
            f"transformers loads {model} with the class {type(tokenizer).__name__}, which is another tokenizer than the one in "
            f"its tokenizer.json. {wrong}, so prompts and answers would be corrupted. In a local copy of the model's folder, "
            'write "tokenizer_class": "PreTrainedTokenizerFast" into tokenizer_config.json, and set model.path to this folder. '
            "If this message stays, transformers chooses the class by the model_type in config.json; then use another model."
        )
