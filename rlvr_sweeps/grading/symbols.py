"""Replace names that latex2sympy cannot read by single letters: indexed names, \\hbar, dots, primes and derivatives.

The same name has the same letter in both texts, however it is spelled: E_1 and E_{1}, y' and \\dot y and dy/dt.
"""

import re
import string
from dataclasses import dataclass

from rlvr_sweeps.grading.latex import GREEK, closes_at

COMMANDS = rf"{GREEK}|varepsilon|vartheta|varphi|ell|hbar|chi|xi|eta|zeta|kappa|Psi|Xi|Pi"
LETTER = rf"(?:\\(?:{COMMANDS})(?![A-Za-z])|(?<![A-Za-z\\])[A-Za-z])"
NEXT_LETTER = LETTER.replace(r"(?<![A-Za-z\\])", "")  # after a d
TOKEN = re.compile(
    rf"(?P<derivative>\\frac\s*\{{\s*d\s*(?P<of>{NEXT_LETTER})\s*\}}\s*\{{\s*d\s*[txs]\s*\}})"
    rf"|(?P<dots>\\d?dot)\s*\{{\s*(?P<dotted>{LETTER})\s*\}}"
    rf"|(?P<hat>\\(?:hat|vec|bar|tilde))\s*\{{\s*(?P<under>{LETTER})\s*\}}"
    rf"|\{{(?P<braced>{LETTER})\}}(?=\s*_)"
    rf"|(?P<command>\\[A-Za-z]+)|(?P<plain>[A-Za-z])"
)
PRIME = re.compile(r"\s*(?:\^\s*\{?\s*(?P<primes>(?:\\prime\s*)+)\}?|(?P<marks>'+))")
INDEX = re.compile(r"\s*_\s*")
ALONE = re.compile(LETTER)
INDEX_I = re.compile(r"\\(?:sum|prod)\s*_\s*\{\s*i\s*=")
ALONE_I = re.compile(r"(?<![A-Za-z\\])i(?![A-Za-z])")
NOT_A_NAME = ("e", "i", "d")  # constants and the sign of a differential


@dataclass
class Names:
    """The letters that stand for the names of two texts."""

    free: list[str]  # letters that occur in neither text
    letters: dict[str, str]  # by name
    positive: set[str]  # letters that stand for an indexed name

    @classmethod
    def of(cls, *texts: str) -> "Names":
        """Return an empty table for these texts."""
        used = set("".join(texts)) | set(NOT_A_NAME)
        return cls([letter for letter in string.ascii_letters[::-1] if letter not in used], {}, set())

    def letter(self, name: str, indexed: bool) -> str | None:
        """Return the letter of a name; None where no letter is free."""
        if name not in self.letters and not self.free:
            return None
        letter = self.letters.setdefault(name, self.free[0] if self.free else "")
        if letter in self.free:
            self.free.remove(letter)
        if indexed:
            self.positive.add(letter)
        return letter


def with_letters(text: str, names: Names) -> str:
    """Return the text with a letter of `names` in the place of each name that the parser cannot read."""
    written, position = [], 0
    while match := TOKEN.search(text, position):
        written.append(text[position : match.start()])
        base = match["of"] or match["dotted"] or match["under"] or match["braced"] or match[0]
        end, name, indexed = match.end(), base, False
        if match["hat"]:
            name = match["hat"] + base
        order = 1 if match["derivative"] else (2 if match["dots"] == r"\ddot" else 1) if match["dots"] else 0
        if ALONE.fullmatch(base) or match["dots"] or match["derivative"]:
            if (index := INDEX.match(text, end)) and index.end() < len(text):
                label, after = label_at(text, index.end())
                if after > 0:
                    name, end, indexed = f"{name}_{label}", after, True
            while prime := PRIME.match(text, end):
                order += prime["primes"].count("prime") if prime["primes"] else len(prime["marks"])
                end = prime.end()
        name += "'" * order
        letter = None
        if name != base or base == r"\hbar" or base == r"\ell":
            letter = names.letter(name, indexed or base == r"\hbar")
        if letter is None:
            written.append(match[0])
            position = match.end()
        else:
            written.append(f" {letter} ")
            position = end
    return "".join(written) + text[position:]


def with_free_index(text: str, names: Names) -> str:
    """Return a sum or product over i with another letter for i, which is otherwise the imaginary unit."""
    if not INDEX_I.search(text) or not names.free:
        return text
    letter = names.free.pop(0)
    return ALONE_I.sub(letter, text)


def label_at(text: str, position: int) -> tuple[str, int]:
    """Return the index at `position` in one spelling, and the position after it; -1 where it has no end."""
    if text[position] == "{":
        end = closes_at(text, position)
        label = text[position + 1 : end]
        return re.sub(r"\\text|[{}\s]", "", label), end + 1 if end > 0 else -1
    if match := re.compile(r"\\[A-Za-z]+").match(text, position):
        return match[0], match.end()
    return text[position], position + 1
