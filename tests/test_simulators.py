"""Branching: frames of the vector environments bit for bit, exact probabilities, and clones that are not faithful refused."""

import copy
import pickle

import gymnasium
import numpy as np
import pytest

from tokenworld.envs import atari, minatar
from tokenworld.errors import UserError
from tokenworld.evaluation.simulators.atari import Atari, shrink
from tokenworld.evaluation.simulators.interface import self_test
from tokenworld.evaluation.simulators.minatar import MinAtar

STICKY = 0.25


def follow(simulator, env, seed, steps):
    """Both under the same random actions: how many episodes ended, after all frames, rewards and ends were the same."""
    rng, ends = np.random.default_rng(seed), 0
    obs, _ = env.reset(seed=seed)
    np.testing.assert_array_equal(simulator.reset(seed), obs[0])
    terminated = False
    for t in range(steps):
        a = int(rng.integers(simulator.actions))
        obs, reward, ended, truncated, _ = env.step(np.array([a]))
        assert not truncated[0]
        one, r, e = (simulator.reset(), 0.0, False) if terminated else simulator.step(a)
        assert one.dtype == np.uint8 and np.array_equal(one, obs[0]) and (r, e) == (reward[0], ended[0]), f"step {t}"
        terminated, ends = e, ends + e
    env.close()
    return ends


@pytest.mark.parametrize(
    "keywords, ends",
    [
        (dict(id="ALE/Breakout-v5"), 8),
        (dict(id="ALE/MsPacman-v5", height=84, width=84, grayscale=True, life_loss_ends=True), 3),
        (dict(id="ALE/Seaquest-v5", height=16, width=16, frameskip=3, full_actions=True, life_loss_ends=True), 3),
        (dict(id="ALE/Pong-v5", height=105, width=80, maxpool=False), 0),
        (dict(id="ALE/Freeway-v5", height=30, width=32, frameskip=1), 0),
        (dict(id="ALE/Boxing-v5", height=210, width=160, frameskip=9), 1),
        (dict(id="ALE/AirRaid-v5", height=100, width=60, frameskip=2), 2),
        (dict(id="ALE/Assault-v5", height=210, width=160), 2),
    ],
)
def test_atari_has_the_frames_of_the_vector_environment(keywords, ends):
    keywords = keywords | {"noop_max": 0}  # ale-py draws them from a generator of its own
    assert follow(Atari(**keywords), atari.make(**keywords), 3, 1500) >= ends


@pytest.mark.parametrize("game", minatar.GAMES)
def test_minatar_has_the_frames_of_the_vector_environment(game):
    id = f"MinAtar/{game}-v1"
    assert follow(MinAtar(id=id), minatar.make(id=id), 5, 600) >= (game not in ("Freeway", "Seaquest"))


def test_shrink_is_the_mean_of_the_area_under_a_pixel():
    image = np.arange(5 * 3, dtype=np.uint8).reshape(5, 3, 1) * 10
    # rows of 2.5: the third belongs by half to both; columns of 1.5: the second likewise
    rows = np.array([[1, 1, 0.5, 0, 0], [0, 0, 0.5, 1, 1]]) / 2.5
    columns = np.array([[1, 0.5, 0], [0, 0.5, 1]]) / 1.5
    np.testing.assert_array_equal(shrink(image, 2, 2)[..., 0], np.rint(rows @ image[..., 0] @ columns.T))


class Sticky:
    """ale-py's own sticky emulator: draws of one step from a snapshot of `simulator`."""

    def __init__(self, simulator):
        import ale_py

        self.simulator, self.ale = simulator, ale_py.ALEInterface()
        self.ale.setLoggerMode(ale_py.LoggerMode.Error)
        self.ale.setFloat("repeat_action_probability", STICKY)
        self.ale.setInt("random_seed", 7)
        self.ale.loadROM(simulator._rom)
        rng = np.random.default_rng(0)
        while not self.ale.game_over():  # at random: in some games nothing ever happens to who does nothing
            self.ale.act(simulator.action_set[int(rng.integers(simulator.actions))])
        self.over = self.ale.cloneState()

    def draw(self, x, a):
        """Screen as bytes, reward, terminated. A game that is over runs no frames, but takes note of the action to repeat."""
        self.ale.restoreState(self.over)
        for _ in range(16):
            self.ale.act(x.held)
        self.ale.restoreState(x.emulator)
        reward, last = 0.0, []
        for i in range(4):
            reward += self.ale.act(self.simulator.action_set[a])
            if self.ale.game_over():
                last.append(x.screen)
                break
            if i >= 2:
                last.append(self.ale.getScreenRGB())
        return np.maximum.reduce(last).tobytes(), reward, self.ale.game_over()


def variations(id, states, draws):
    """Total variation between listed branches and draws of the sticky emulator, and the number of branches: (states,) both."""
    simulator = Atari(id=id, sticky=STICKY)
    sticky, rng, found, sizes = Sticky(simulator), np.random.default_rng(0), [], []
    while len(found) < states:
        for a in rng.integers(0, simulator.actions, rng.integers(10, 60)).tolist():
            if simulator.step(a)[2]:
                simulator.reset()
        x = simulator.snapshot()
        a = int(rng.choice([a for a in range(simulator.actions) if simulator.action_set[a] != x.held]))
        counts = {}
        for _ in range(draws):
            drawn = sticky.draw(x, a)
            counts[drawn] = counts.get(drawn, 0) + 1
        shares = {}
        for (screen, reward, ended), n in counts.items():
            shown = shrink(np.frombuffer(screen, np.uint8).reshape(x.screen.shape), 64, 64)
            key = (shown.transpose(2, 0, 1).tobytes(), reward, ended)
            shares[key] = shares.get(key, 0) + n / draws
        listed = {(obs.tobytes(), reward, ended): p for p, obs, reward, ended in simulator.branches(x, a)}
        found.append(sum(abs(listed.get(key, 0) - shares.get(key, 0)) for key in listed.keys() | shares.keys()) / 2)
        sizes.append(len(listed))
    return np.array(found), np.array(sizes)


def test_branches_are_what_a_sticky_emulator_does():
    tv, sizes = variations("ALE/Breakout-v5", 6, 500)
    assert tv.max() < 0.08 and tv.mean() < 0.045, tv  # five branches and 500 draws alone: .02 on average
    assert sizes.max() >= 3, sizes


@pytest.mark.slow
@pytest.mark.parametrize("game", ["Breakout", "Pong", "MsPacman", "Freeway", "Seaquest"])
def test_branches_are_what_a_sticky_emulator_does_at_length(game):
    tv, sizes = variations(f"ALE/{game}-v5", 20, 10_000)
    print(f"{game}: TV mean {tv.mean():.4f}, largest {tv.max():.4f}, below .02 in {(tv < 0.02).mean():.0%} of 20 states; "
          f"branches {sizes.min()} to {sizes.max()}, mean {sizes.mean():.1f}")  # fmt: skip
    assert (tv < 0.02).mean() >= 0.95, tv
    assert sizes.max() >= 2


def test_branches_leave_the_simulator_alone_and_sum_to_one():
    simulator = Atari(id="ALE/MsPacman-v5", sticky=STICKY, noop_max=0)
    other = simulator.snapshot()
    for a in (1, 2, 3, 4):
        simulator.step(a)
    state, x = simulator.state_hash(), simulator.snapshot()
    for a in range(simulator.actions):
        listed = simulator.branches(other, a)
        assert sum(p for p, *_ in listed) == pytest.approx(1) and len(listed) <= 5
        assert len({(obs.tobytes(), r, e) for _, obs, r, e in listed}) == len(listed)
    assert simulator.state_hash() == state
    path = [simulator.step(a) for a in (5, 6, 7)]
    simulator.reset(4)  # a new game, the ROM loaded anew
    # pickled and read here, in this test: nothing of a file is unpickled
    np.testing.assert_array_equal(simulator.restore(pickle.loads(pickle.dumps(x))), x.obs)
    again = [simulator.step(a) for a in (5, 6, 7)]
    assert all(np.array_equal(one[0], two[0]) and one[1:] == two[1:] for one, two in zip(path, again, strict=True))


@pytest.mark.parametrize("make", [lambda: Atari(id="ALE/Breakout-v5", sticky=0.9), lambda: MinAtar(sticky=0.5)])
def test_reseeding_decides_what_happens(make):
    simulator = make()
    x = simulator.snapshot()

    def hashes(k):
        simulator.restore(x)
        simulator.reseed(k)
        found = []
        for a in (2, 1) * 5:
            ended = simulator.step(a)[2]
            found.append(simulator.state_hash())
            if ended:
                break
        return tuple(found)

    assert hashes(3) == hashes(3)
    assert len({hashes(k) for k in range(10)}) > 3


def test_the_hash_is_of_the_state_and_not_of_the_way_to_it():
    simulator = MinAtar(id="MinAtar/Breakout-v1", sticky=0.0)  # 0 no-op, 1 left, 2 right
    x, found = simulator.snapshot(), {}
    for way in ((1, 2), (2, 1), (1, 0), (0, 0)):
        simulator.restore(x)
        simulator.reseed(len(found))
        for a in way:
            simulator.step(a)
        found[way] = simulator.state_hash()
    assert found[1, 2] == found[2, 1] == found[0, 0] != found[1, 0]
    assert all(0 <= h < 2**64 for h in found.values())


def test_bad_options_and_steps():
    with pytest.raises(UserError, match="below 210 and 160"):
        Atari(height=300, width=64)
    with pytest.raises(UserError, match="did you mean"):
        Atari(id="ALE/Brakeout-v5")
    with pytest.raises(UserError, match="sticky"):
        MinAtar(sticky=1.5)
    for simulator in (Atari(noop_max=0), MinAtar(sticky=0.0)):
        with pytest.raises(ValueError, match="0.."):
            simulator.step(simulator.actions)
        while not simulator.step(1)[2]:
            pass
        with pytest.raises(ValueError, match="ended"):
            simulator.step(0)


class Leaky(Atari):
    """Branches a sticky emulator, its generator restored, but not the action that it repeats."""

    exact = False
    prime = 0

    def __init__(self):
        super().__init__(id="ALE/Breakout-v5", noop_max=0)
        self.ale.setFloat("repeat_action_probability", STICKY)
        self.ale.setInt("random_seed", 5)
        self.ale.loadROM(self._rom)
        self_test(self, "Leaky")

    def snapshot(self):
        if not hasattr(self, "last"):
            return super().snapshot()
        return super().snapshot(), self.ale.cloneState(include_rng=True), self.last

    def restore(self, x):
        if not isinstance(x, tuple):
            return super().restore(x)
        for _ in range(self.prime):
            self.ale.act(x[2])
        obs = super().restore(x[0])
        self.ale.restoreState(x[1])
        self.last = x[2]
        return obs

    def step(self, a):
        self.last = self.action_set[a]
        return super().step(a)

    def branches(self, x, a):
        return None


class Primed(Leaky):
    prime = 16  # the emulator repeats what it was told last, with certainty enough


class Stale(Atari):
    """Shows the screen after a restore: the one before it."""

    def restore(self, x):
        super().restore(x)
        self._show(self._screen())
        return self._obs


class Copied:
    """Copies gymnasium's AtariEnv, which comes back as a new game."""

    exact, actions = False, 4

    def __init__(self):
        self.env = gymnasium.make("ALE/Breakout-v5", repeat_action_probability=0.0).unwrapped
        self_test(self, "Copied")

    def reset(self, seed=None):
        self.obs = self.env.reset(seed=seed)[0].transpose(2, 0, 1)
        return self.obs

    def snapshot(self):
        return copy.deepcopy(self.env), self.obs

    def restore(self, x):
        self.env, self.obs = copy.deepcopy(x[0]), x[1]
        return self.obs

    def step(self, a):
        obs, reward, terminated, _, _ = self.env.step(a)
        self.obs = obs.transpose(2, 0, 1)
        return self.obs, reward, terminated

    def reseed(self, k):
        pass

    def branches(self, x, a):
        return None

    def state_hash(self):
        return int.from_bytes(self.env.ale.getRAM().tobytes(), "little")


class OneBranch(Atari):
    """Lists the new action's branch alone."""

    def branches(self, x, a):
        return [(1.0, *super().branches(x, a)[0][1:])]


@pytest.mark.parametrize(
    "make, message",
    [
        (Leaky, "Leaky cannot be branched: . steps after a snapshot the (observation|state)"),
        (Copied, "Copied cannot be branched: 0 steps after a snapshot the state"),
        (Stale, "Breakout-v5 cannot be branched: 0 steps after a snapshot the observation"),
        (lambda: OneBranch(id="ALE/Pong-v5", sticky=0.75), "not among its 1 listed branches"),
    ],
)
def test_a_clone_that_is_not_faithful_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_it_is_the_leak_that_was_refused():
    Primed()
