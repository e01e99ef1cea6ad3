"""Somebody without a history is asked for by attributes or by friends, and by no model; but for
attributes without a table, which a model with begin places reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rec_jax.data.dataset import Dataset
from rec_jax.errors import InputError
from rec_jax.inference.friends import read_friends, recommend_friend
from rec_jax.inference.newcomers import read_attributes, recommend_newcomer
from rec_jax.inference.retrieve import Recommendation
from rec_jax.run_sections import EvaluateConfig


@dataclass(frozen=True)
class Newcomer:
    """What is known of somebody. attributes: by name, in the table `users`, whose ids are in the
    column `user_id`; friends: users, whose own friends are in the file `friendships`."""

    attributes: Mapping[str, str] | None = None
    users: Path | str | None = None
    user_id: str = "user_id"
    friends: Sequence[str] | None = None
    friendships: Path | str | None = None

    def check(self, others: Mapping[str, Any]) -> bool:
        """Whether anything is known that no model is asked for.

        others: what else was asked, by name; only a model has it.

        Raises:
          InputError: there is a table without what asks it, or a model would be asked too.
        """
        if self.users is not None and self.attributes is None:
            raise InputError("a table of users is of no use without attributes; expected both")
        if self.friendships is not None and self.friends is None:
            raise InputError("friendships are of no use without friends; expected both")
        if self.attributes is None and self.friends is None:
            return False
        given = [name for name, value in others.items() if value is not None]
        if self.attributes is not None:
            given += ["friends"] if self.friends is not None else []
            if self.users is None and self.friends is None:
                return False
            if given or self.users is None:
                raise InputError("attributes are asked by what is popular among the users who have "
                                 "them, without a model; expected a table of users"
                                 + (f", and no {', '.join(given)}" if given else ""))
        elif given:
            raise InputError("friends are asked by what they took, without a model; expected no "
                             f"{', '.join(given)}")
        return True

    def recommend(self, dataset: Dataset, k: int, settings: EvaluateConfig) -> list[Recommendation]:
        """The k best items, best first. settings: which items compete.

        Raises:
          InputError: as `read_attributes`, `read_friends` and what ranks by them.
        """
        if self.friends is not None:
            return recommend_friend(read_friends(dataset, self.friendships), self.friends, k,
                                    settings)
        assert self.attributes is not None and self.users is not None
        known = read_attributes(dataset, self.users, list(self.attributes), self.user_id)
        return recommend_newcomer(known, self.attributes, k, settings)
