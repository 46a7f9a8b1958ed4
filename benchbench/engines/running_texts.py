"""How a server's tokens of running text are counted: for the corpus, and for a file's prompts of exact length."""

from __future__ import annotations

from collections.abc import Sequence

from benchbench.engines.token_lengths import WORDS, find_counter, fit_vocabulary
from benchbench.errors import EngineError
from benchbench.openai.target import Access
from benchbench.prompts.prompt_dealer import Dealer
from benchbench.prompts.text_fitting import HEAD_WORDS, TextFitter
from benchbench.spec import Cell


def running_texts(
    cells: Sequence[Cell], url: str, access: Access, dealer: Dealer
) -> tuple[TextFitter | None, str, int]:
    """What makes texts exact, a sentence on how, and the tokens that all prompts have by their form (0: unknown).

    None where no cell needs any: a file's prompts that stay as they are need no counting. Raises EngineError where
    nobody counts, and where a cell may ask for fewer tokens than a prompt has.
    """
    made, as_they_are = list[Cell](), list[Cell]()
    for cell in cells:
        law = cell.lengths.input
        if cell.prompts.kind == "corpus" or (cell.prompts.kind == "file" and dealer.kind(cell) == "text"):
            (as_they_are if law and law.kind == "file" else made).append(cell)
    for cell in (made or as_they_are)[:1]:
        try:
            counter = find_counter(url, access, cell.engine, cell.model, cell.prompts.tokenizer, often=True)
        except EngineError as error:
            if made or error.gone:
                raise
            return None, "", 0
        if not made:
            return None, "", counter.count(WORDS[0])
        fitted = fit_vocabulary(counter.count, WORDS)
        short = fitted.overhead + 1
        _check_least(made, short)
        fitter = TextFitter(counter.count, fitted.words, fitted.lead, short)
        how = f"running text has exact lengths, counted by {counter.how}: {fitted.overhead} tokens besides"
        return fitter, f"{how} (template, BOS, first word)", fitted.overhead
    return None, "", 0


def _check_least(cells: Sequence[Cell], short: int) -> None:
    for cell in cells:
        law = cell.lengths.input
        least = law.least if law else cell.input or 0
        needed = short + HEAD_WORDS * (cell.prompts.kind == "corpus")
        if least < needed:
            message = f"{cell.label} may ask for {least} tokens, and a prompt has {needed} at least, with its template"
            key = "grid.input" if law is None else f"grid.input.{law.kind}"
            raise EngineError(message, key, allowed=f"{needed} or more" + " (its min)" * (law is not None))
