"""Stable-Baselines3's DQN with the users of `choc_kale`, for benchmarks/decisions_peer.py.

It is started with one JSON argument, and writes one JSON object:

    environment   the fields of `choc_kale.Config`, and `chocolate`, a .npy file
    sees          "state": the user's exposure and how much time is left, which is all that counts
                  and more than an agent of this project knows; "history": the items that were taken
                  last, by their ids, which the network embeds, and the time
    settings      of DQN, by its own names; `envs`, `layers`, `reward_scale` beside them
    seed, turns, every, users    of the run; turns between evaluations of the best items, on so many
    began         time.time() when the process was started
    threads       of torch

seconds are those since then, without those of the evaluations.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import torch
from plain_users import PlainChocKale
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv

RECALL = 12
"""Items that a history has: of what was taken before them .7^12 = 1 % is left in a user."""


class ChocKale(gymnasium.Env[np.ndarray, np.int64]):
    """The environment; rewards are those of the user times `scale`."""

    def __init__(self, config: Any, chocolate: np.ndarray, seed: int, sees: str, scale: float
                 ) -> None:
        self.user = PlainChocKale(config, chocolate, seed)
        self.sees, self.scale = sees, scale
        self.widest = 1 / (1 - config.memory)
        self.action_space = gymnasium.spaces.Discrete(config.items)
        size = 2 if sees == "state" else 1 + RECALL
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, Any]:
        """A new user."""
        if seed is not None:
            self.user.random = np.random.default_rng(seed)
        self.user.reset()
        self.taken = [self.user.config.items] * RECALL  # nothing yet
        return self.observed(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, Any]:
        """One item is shown, and taken."""
        item = int(action)
        reward, done = self.user.step([item])
        self.taken = [*self.taken[1:], item]
        return self.observed(), self.scale * reward, done, False, {"earned": reward}

    def observed(self) -> np.ndarray:
        """f32 `[2]` or `[1 + RECALL]`."""
        if self.sees == "state":
            return np.array([self.user.exposure / self.widest,
                             self.user.left / self.user.config.horizon], np.float32)
        return np.array([self.user.left, *self.taken], np.float32)


class Embedded(BaseFeaturesExtractor):
    """What a history is to a network: vectors of its items, of their places, and of the time."""

    def __init__(self, space: gymnasium.Space[Any], items: int, horizon: int, width: int = 8
                 ) -> None:
        super().__init__(space, RECALL * width + width)
        self.items = torch.nn.Embedding(items + 1, width)
        self.left = torch.nn.Embedding(horizon + 1, width)

    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        """f32 `[B, (RECALL + 1) width]`."""
        ids = seen.long()
        return torch.cat([self.left(ids[:, 0]), self.items(ids[:, 1:]).flatten(1)], 1)


class Curve(BaseCallback):
    """Evaluates the best items, and keeps the time that this takes apart."""

    def __init__(self, users: list[ChocKale], every: int, began: float) -> None:
        super().__init__()
        self.users, self.every, self.began = users, every, began
        self.next, self.apart, self.start = every, 0.0, None
        self.curve: list[list[float]] = []

    def _on_step(self) -> bool:
        if self.start is None:
            self.start = time.time() - self.began
        if self.num_timesteps >= self.next:
            self.measure()
        return True

    def measure(self) -> None:
        """One more point: turns, return, seconds."""
        begin = time.time()
        self.next = self.num_timesteps + self.every
        earned, done = 0.0, False
        seen = np.stack([user.reset()[0] for user in self.users])
        while not done:
            actions, _ = self.model.predict(seen, deterministic=True)
            found = [user.step(action) for user, action in zip(self.users, actions, strict=True)]
            seen, done = np.stack([one[0] for one in found]), found[0][2]
            earned += sum(one[4]["earned"] for one in found)
        now = time.time()
        self.curve.append([self.num_timesteps, earned / len(self.users),
                           begin - self.began - self.apart])
        self.apart += now - begin


def main() -> None:
    """See the top of the file."""
    given = json.loads(sys.argv[1])
    torch.set_num_threads(given["threads"])
    settings, fields = dict(given["settings"]), given["environment"]
    chocolate = np.load(fields.pop("chocolate"))
    config = SimpleNamespace(**fields)
    envs, scale, layers = (settings.pop(name) for name in ("envs", "reward_scale", "layers"))
    rate = settings.pop("learning_rate")

    def new(seed: int) -> ChocKale:
        return ChocKale(config, chocolate, seed, given["sees"], scale)

    policy: dict[str, Any] = {"net_arch": layers}
    if given["sees"] == "history":
        policy |= {"features_extractor_class": Embedded, "features_extractor_kwargs": {
            "items": config.items, "horizon": config.horizon}}
    seed = given["seed"]
    played = DummyVecEnv([lambda one=one: new(1000 * seed + one) for one in range(envs)])
    model = DQN("MlpPolicy", played, learning_rate=lambda left: rate * left, seed=seed,
                policy_kwargs=policy, device="cpu", **settings)
    curve = Curve([new(10**6 + 1000 * seed + one) for one in range(given["users"])],
                  given["every"], given["began"])
    model.learn(given["turns"], callback=curve)
    if curve.curve[-1][0] < model.num_timesteps:
        curve.measure()
    print(json.dumps({"curve": curve.curve, "start_seconds": curve.start, "versions": {
        name: version(name) for name in ("stable-baselines3", "gymnasium", "torch")}}))


if __name__ == "__main__":
    main()
