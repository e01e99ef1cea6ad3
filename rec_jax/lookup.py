"""`rec_jax.search`: items of a text, by the text encoder, by their words, and for whom it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rec_jax.api import Loadable, load
from rec_jax.data.dataset import Dataset
from rec_jax.data.dataset_files import META
from rec_jax.errors import InputError
from rec_jax.inference.retrieve import Recommendation, Recommender, listed
from rec_jax.inference.search import blend_scores, item_space, trained_items, user_scores
from rec_jax.inference.served import Served, Tell, warn
from rec_jax.text.search import SearchConfig, TextIndex, best_items, open_index


@dataclass(frozen=True)
class Search:
    """A catalogue in which texts find items; served: the run that knows users, or None."""

    dataset: Dataset
    index: TextIndex
    served: Served | None = None

    def find(self, text: str, *, user: str | None = None, history: Sequence[str] | None = None,
             times: Sequence[int] | None = None, blend: float = 0.5, k: int = 10
             ) -> list[Recommendation]:
        """The k best items for a text; see `search`."""
        if k < 1:
            raise InputError(f"k is {k}; expected 1 or more")
        scores = self.index.scores([text])[0]
        if user is not None or history is not None:
            if self.served is None:
                raise InputError(f"{self.dataset.folder} is a dataset, which knows nobody's taste; "
                                 "expected a run beside a user or a history")
            if user is not None and history is not None:
                raise InputError("expected a user or a history beside a text, and not both")
            scores = blend_scores(scores, user_scores(self.served, user, history, times),
                                  trained_items(self.served), blend)
        found = best_items(scores, k)
        entries, texts = listed(self.dataset, found, scores[found]), self.index.texts
        if not texts:
            return entries
        return [replace(entry, title=entry.title or texts[item])  # of a table of texts
                for entry, item in zip(entries, found.tolist(), strict=True)]


def load_search(run: Loadable, config: SearchConfig, *, space: str = "text", tell: Tell = warn,
                **how: Any) -> Search:
    """What `search` asks, kept for many questions: `load_search(..).find("space opera")`.

    run: a run's folder or a loaded model; or the folder of a dataset, where nobody asks for a user
      or for the space of a run's items.
    config: the encoder, the item vectors and the texts; see `SearchConfig`.
    space: text: a query's vector is compared with those of the items' texts; items: the matrix of
      the run's `[[content]]` leads it into the space of its items.
    tell: is told where words of the items are not known. how: see `load`.

    Raises:
      InputError: no such run, vectors or matrix, or another model than made them.
    """
    if space not in ("text", "items"):
        raise InputError(f"space is {space!r}; expected text or items")
    served: Served | None
    if isinstance(run, Recommender | Served):
        served = run.served if isinstance(run, Recommender) else run
    elif (Path(run) / META).is_file():
        served = None
    else:
        served = load(run, tell=tell, **how).served
    dataset = Dataset.open(run) if served is None else served.dataset  # type: ignore[arg-type]
    if space == "text":
        index = open_index(dataset, config)
    else:
        if served is None or config.model is None:
            raise InputError("space 'items' is that of a run with [[content]], into which a text "
                             "encoder and its matrix lead; expected a run, and the folder of the "
                             "model that made its content")
        name, vectors, matrix = item_space(served, config.name)
        index = open_index(dataset, replace(config, name=name)).in_space(vectors, matrix)
    for note in index.notes:
        tell(note)
    return Search(dataset, index, served)


def search(run: Loadable, text: str, *, model: Path | str | None = None, user: str | None = None,
           history: Sequence[str] | None = None, times: Sequence[int] | None = None,
           blend: float = 0.5, k: int = 10, space: str = "text", name: str | None = None,
           prefix: str | None = None, table: Path | str | None = None, id: str = "item_id",
           columns: Sequence[str] = (), lexical: float | None = None, tell: Tell = warn,
           **how: Any) -> list[Recommendation]:
    """The k best items for a text, of all items of a run's dataset, or of a dataset; best first.

    model: folder of the text encoder that made the item vectors `name` (by default the dataset's
      only ones of text); None: by the words of the texts alone. prefix: before the query.
    table, id, columns: the items' texts, as `embed` takes them; by default those of the dataset.
    lexical: what a point of BM25 is worth in cosines; 0: the encoder alone.
    user, or history with times: who asks; their taste has the share `blend` of the score, 0 to 1,
      and items of the history may come again. space, how: see `load_search`, which keeps the
      model for the next question.

    Raises:
      InputError: also where the text has no word, or nobody knows the user.
    """
    given = {} if lexical is None else {"lexical": lexical}
    config = SearchConfig(
        model=None if model is None else str(model), name=name, prefix=prefix,
        table=None if table is None else str(table), id=id,
        columns=(columns,) if isinstance(columns, str) else tuple(columns), **given)
    return load_search(run, config, space=space, tell=tell, **how).find(
        text, user=user, history=history, times=times, blend=blend, k=k)
