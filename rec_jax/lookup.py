"""`rec_jax.search`: items of a text, by the text encoder, by their words, and for whom it is; and
`rec_jax.learn_search`: what clicks after texts teach it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rec_jax.data.dataset import Dataset
from rec_jax.data.dataset_files import META
from rec_jax.data.item_vectors import open_item_vectors
from rec_jax.data.queries import Query, texts_in
from rec_jax.errors import InputError
from rec_jax.files import check_path
from rec_jax.inference.retrieve import Recommendation, Recommender, listed
from rec_jax.inference.search import (
    blend_scores,
    item_space,
    trained_items,
    user_scores,
    vectors_of,
)
from rec_jax.inference.served import Served, Tell, warn
from rec_jax.inference.verbs import Loadable, load, loaded
from rec_jax.text.clicks import Clicks, read_clicks, split_clicks
from rec_jax.text.learned import LOSSES, ClickConfig, learn_matrix, mrr_of, regressed
from rec_jax.text.learned_file import Learned, probe_of, read_learned, write_learned
from rec_jax.text.search import (
    LEXICAL,
    SearchConfig,
    TextIndex,
    best_items,
    only_text_vectors,
    open_index,
    query_encoder,
    unit,
)

_HOW = ("cold", "step", "data", "mesh")
"""What `load` may be told of a run, beside that its code is trusted."""


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
      the run's `[[content]]` leads it into the space of its items. A `learned` file says its own.
    tell: is told where words of the items are not known. how: see `load`.

    Raises:
      InputError: no such run, vectors or matrix, or another model than made them.
    """
    check_space(space)
    dataset, served = opened(run, tell, how)
    if config.learned is not None:
        index = learned_index(dataset, served, config, space)
    elif space == "text":
        index = open_index(dataset, config)
    else:
        if served is None or config.model is None:
            raise InputError("space 'items' is that of a run with [[content]], into which a text "
                             "encoder and its matrix lead; expected a run, and the folder of the "
                             "model that made its content")
        own = item_space(served, config.name)
        index = open_index(dataset, replace(config, name=own.name)).in_space(own.vectors, own.lead)
    for note in index.notes:
        tell(note)
    return Search(dataset, index, served)


def queries(run: Loadable, texts: Sequence[str], *, model: Path | str) -> list[Query]:
    """Searches with their vectors, for the `history` of `recommend`; texts that nobody of the
    dataset searched have no others.

    run: one that reads queries; model: folder of the text encoder that made its query vectors.

    Raises:
      InputError: the run reads no queries, or another model made its vectors.
    """
    served = loaded(run)
    timeline = served.timeline
    if timeline is None:
        raise InputError(f"run {served.run.folder} reads no queries; expected one with "
                         "[[features]] kind = 'query'")
    encode = query_encoder(texts_in(served.dataset), timeline.vectors.about["name"],
                           timeline.vectors, SearchConfig(model=str(model)))
    return [Query(text, vector) for text, vector in zip(texts, encode(texts), strict=True)]


def with_vectors(served: Served, history: Sequence[str | Query], model: str) -> list[str | Query]:
    """A history whose queries that nobody of the dataset searched have vectors; see `queries`."""
    asked = [each for each in history if isinstance(each, Query)]
    texts = [each.text for each in asked if each.vector is None]
    if not asked or served.timeline is None:
        raise InputError("a model beside a history is the encoder of its queries; expected a query "
                         "in it, and a run that reads queries ([[features]] kind = 'query')")
    numbers = dict(zip(texts, served.timeline.numbers_of(texts), strict=True))
    new = [text for text, number in numbers.items() if number is None]
    made = {query.text: query for query in (queries(served, new, model=model) if new else ())}
    return [made.get(each.text, each) if isinstance(each, Query) and each.vector is None else each
            for each in history]


def check_space(space: str) -> None:
    """Raises InputError where texts lead nowhere by that name."""
    if space not in ("text", "items"):
        raise InputError(f"space is {space!r}; expected text or items")


def opened(run: Loadable, tell: Tell, how: Mapping[str, Any]) -> tuple[Dataset, Served | None]:
    """A dataset, and the run that was trained on it, where `run` is not the dataset's folder.

    how: as `load` takes it, where it is asked.
    """
    if unknown := how.keys() - {*_HOW, "trust_code"}:
        raise TypeError(f"a search knows no {min(unknown)!r}")
    if isinstance(run, Recommender | Served):
        _refuse(how, "this model is loaded")
        served = run.served if isinstance(run, Recommender) else run
    elif (Path(run) / META).is_file():
        _refuse(how, f"{run} is a dataset")
        return Dataset.open(run), None
    else:
        served = load(run, tell=tell, **how).served
    return served.dataset, served


def _refuse(how: Mapping[str, Any], why: str) -> None:
    for name in _HOW:
        if how.get(name) is not None:
            raise InputError(f"{name} is of a run, and {why}; expected none")


def search(run: Loadable, text: str, *, model: Path | str | None = None, user: str | None = None,
           history: Sequence[str] | None = None, times: Sequence[int] | None = None,
           blend: float = 0.5, k: int = 10, space: str = "text", name: str | None = None,
           prefix: str | None = None, table: Path | str | None = None, id: str = "item_id",
           columns: Sequence[str] = (), lexical: float | None = None,
           learned: Path | str | None = None, tell: Tell = warn, **how: Any
           ) -> list[Recommendation]:
    """The k best items for a text, of all items of a run's dataset, or of a dataset; best first.

    model: folder of the text encoder that made the item vectors `name` (by default the dataset's
      only ones of text); None: by the words of the texts alone. prefix: before the query.
    table, id, columns: the items' texts, as `embed` takes them; by default those of the dataset.
    lexical: what a point of BM25 is worth in cosines; 0: the encoder alone. learned: a file that
      `learn_search` wrote, by which the text's vector is led.
    user, or history with times: who asks; their taste has the share `blend` of the score, 0 to 1,
      and items of the history may come again. space, how: see `load_search`, which keeps the
      model for the next question.

    Raises:
      InputError: also where the text has no word, or nobody knows the user.
    """
    config = _settings(model, name, prefix, table, id, columns, lexical, learned)
    return load_search(run, config, space=space, tell=tell, **how).find(
        text, user=user, history=history, times=times, blend=blend, k=k)


def _settings(model: Path | str | None, name: str | None, prefix: str | None,
              table: Path | str | None, id: str, columns: Sequence[str], lexical: float | None,
              learned: Path | str | None = None) -> SearchConfig:
    """What a caller says of a search, as its config has it."""
    model, table, learned = (None if path is None else str(path)
                             for path in (model, table, learned))
    return SearchConfig(
        model=model, name=name, prefix=prefix, table=table, id=id,
        columns=(columns,) if isinstance(columns, str) else tuple(columns),
        lexical=LEXICAL if lexical is None else lexical, learned=learned)


class Begin(NamedTuple):
    """Where a search stands before clicks teach it. name: of the item vectors that texts are
    compared with, or that lead to a run's items; texts: gives vectors of texts and knows words;
    vectors: of all items, f32 `[V, d]`, of length 1, to which `matrix` f32 `[c, d]` leads texts;
    of: whose they are, in words."""

    name: str
    texts: TextIndex
    vectors: npt.NDArray[np.float32]
    matrix: npt.NDArray[np.float32]
    of: str


def begin_of(dataset: Dataset, served: Served | None, config: SearchConfig, space: str) -> Begin:
    """The search of `config` in a space, as `load_search` has it; of a run without `[[content]]`
    the matrix that leads its items' texts nearest to them.

    Raises:
      InputError: as `load_search`.
    """
    if config.model is None:
        raise InputError("clicks teach where vectors of texts lead; expected the folder of the "
                         "model that made the item vectors")
    if space == "text":
        name = config.name or only_text_vectors(dataset)
        index = open_index(dataset, replace(config, name=name))
        assert index.vectors is not None
        width = index.vectors.shape[1]
        return Begin(name, index, index.vectors, np.eye(width, dtype=np.float32),
                     f"the item vectors {name!r}")
    if served is None:
        raise InputError("space 'items' is that of a run; expected a run")
    of, linear = f"the items of {served.run.folder}", None
    if served.config.content:
        name, _, lead = item_space(served, config.name)
        if not any(part.hidden for part in served.config.content if part.name == name):
            linear = lead
    else:
        name = config.name or only_text_vectors(dataset)
    index, vectors = open_index(dataset, replace(config, name=name)), unit(vectors_of(served))
    assert index.vectors is not None
    own = open_item_vectors(dataset, name)
    known = own.has & trained_items(served)
    matrix = (linear(np.eye(index.vectors.shape[1], dtype=np.float32)) if linear is not None else
              regressed(unit(np.asarray(own.vectors)[known]), vectors[known]))
    return Begin(name, index, vectors, matrix, of)


def learned_index(dataset: Dataset, served: Served | None, config: SearchConfig,
                  space: str = "text") -> TextIndex:
    """The search of `config` with what `config.learned` says.

    space: as it was asked for; text, the default, is any.

    Raises:
      InputError: it is no such file, or of another space, other items or other texts.
    """
    assert config.learned is not None
    learned = read_learned(config.learned)
    about = learned.about
    for name, asked, free in (("space", space, "text"), ("name", config.name, None)):
        if asked not in (free, about[name]):
            raise InputError(f"{name} is {asked!r}, and {config.learned} was learned for "
                             f"{about[name]!r}; expected that, or none")
    prefix = about["prefix"] if config.prefix is None else config.prefix
    named = replace(config, name=about["name"], prefix=prefix)
    of_items = about["space"] != "text"
    if of_items and served is None:
        raise InputError(f"{config.learned} leads to {about['of']}; expected a run")
    index = open_index(dataset, named)
    assert index.vectors is not None
    vectors, where = index.vectors, f"dataset {dataset.folder}"
    if of_items and served is not None:
        vectors, where = unit(vectors_of(served)), f"run {served.run.folder}"
    made = open_item_vectors(dataset, about["name"]).about
    if (made["source"].get("model_hash"), made["dim"]) != (about["model_hash"],
                                                          len(learned.matrix)):
        raise InputError(f"the item vectors {about['name']!r} of {dataset.folder} were made anew "
                         f"by another model since {config.learned} was learned; learn it again")
    learned.check_items(vectors, where)
    return index.in_space(vectors, lambda texts: texts @ learned.matrix)


def learn_search(run: Loadable, clicks: Path | str, *, model: Path | str, out: Path | str,
                 query: str = "query", item: str = "item_id", space: str = "text",
                 name: str | None = None, prefix: str | None = None,
                 table: Path | str | None = None, id: str = "item_id",
                 columns: Sequence[str] = (), lexical: float | None = None,
                 learning: ClickConfig | None = None, beside: bool = False, tell: Tell = warn,
                 **how: Any) -> dict[str, Any]:
    """Learn from clicks where texts lead, for `search(.., learned=out)`.

    run: of a run or a dataset. clicks: CSV, TSV or Parquet with the columns `query`, a text, and
      `item`, the id of an item that was clicked after it; a row a click.
    space: text: among the vectors of the items' texts; items: among a run's vectors of its items.
    model, name, prefix, table, id, columns, lexical, tell, how: as `search` takes them.
    learning: of `text.learned`. beside: learn by the other loss too, for its figure alone.

    Returns what the file says: counts, and MRR@10 of the clicks after texts that are held out,
    before and after, of the encoder and with the words.

    Raises:
      InputError: no such run, vectors, clicks or columns, or `out` exists.
    """
    check_space(space)
    if check_path(out).exists():
        raise InputError(f"{out} exists; expected the name of a new file")
    learning = learning or ClickConfig()
    config = _settings(model, name, prefix, table, id, columns, lexical)
    dataset, served = opened(run, tell, how)
    found = read_clicks(dataset, clicks, query, item)
    learned, held = split_clicks(found, learning.held_out, learning.seed)
    begin = begin_of(dataset, served, config, space)
    for note in begin.texts.notes:
        tell(note)
    assert begin.texts.encode is not None
    vectors = dict(zip(found.texts, begin.texts.encode(found.texts), strict=True))

    def figures(matrix: npt.NDArray[np.float32]) -> dict[str, float]:
        known = replace(begin.texts, encode=lambda texts: np.stack([vectors[one] for one in texts]))
        index = known.in_space(begin.vectors, lambda texts: texts @ matrix)
        ways = {"encoder": replace(index, words=None)} | (
            {} if index.words is None else {"with words": index})
        return {way: mrr_of(held, one.scores, dataset.num_items) for way, one in ways.items()}

    mrr, matrix, losses = {"before": figures(begin.matrix)}, begin.matrix, list[float]()
    given = unit(np.stack([vectors[text] for text in learned.texts]))
    found_by = begin.vectors * begin.texts.has[:, None]  # who cannot be found is no negative
    for loss in LOSSES:
        if loss != learning.loss and not beside:
            continue
        made, means = learn_matrix(replace(learning, loss=loss), learned, given, found_by,
                                   begin.matrix)
        mrr[loss] = figures(made)
        if loss == learning.loss:
            matrix, losses = made, means
    about = {"space": space, "of": begin.of, "name": begin.name, "prefix": prefix,
             "model_hash": open_item_vectors(dataset, begin.name).about["source"]["model_hash"],
             "mrr@10": mrr, "loss_by_epoch": losses, "left_out": found.left_out,
             "learned": _counts(learned), "held_out": _counts(held),
             "settings": asdict(learning), "dataset": dataset.split_hash}
    write_learned(out, Learned(matrix, probe_of(begin.vectors), about))
    return {"file": str(out), **about}


def _counts(clicks: Clicks) -> dict[str, int]:
    return {"texts": len(clicks.texts), "clicks": len(clicks.item)}
