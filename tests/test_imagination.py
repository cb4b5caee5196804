"""Imagination against an analytic toy world: what it collects lines up, and its lambda-returns are the exact ones."""

from dataclasses import dataclass
from types import SimpleNamespace

import torch

from tokenworld.heads import Bernoulli
from tokenworld.imagination import imagine
from tokenworld.interfaces import Codes, Prediction
from tokenworld.policies.returns import ReturnScale, lambda_return
from tokenworld.world_model import WorldModel

H = 6


@dataclass
class Certain:
    """A distribution with one value."""

    value: torch.Tensor

    @property
    def mean(self):
        return self.value

    def sample(self, noise):
        return self.value


class Chain:
    """States 0..: action 1 moves right, reward is 10 * state + action of the step, state 3 -> 4 terminates."""

    decoding, noise_size = SimpleNamespace(noise_size=1), 3
    split_noise, outcome = WorldModel.split_noise, WorldModel.outcome

    def step(self, state, action, noise):
        after = state + action
        end = (after >= 4) & (action == 1)
        logits = torch.where(end, 50.0, -50.0)
        reward = 10.0 * state + action
        return Prediction(codes(after), after[:, None].float(), reward=Certain(reward), terminated=Bernoulli(logits)), after


class Script:
    """Plays a fixed script and remembers what it saw."""

    needs_pixels, noise_size = False, 1

    def __init__(self, actions):
        self.actions, self.seen = actions, []

    def start(self, batch):
        return torch.zeros(batch, dtype=torch.int64)

    def act(self, view, carry, noise):
        self.seen.append(view.codes.indices[:, 0, 0])
        return self.actions[:, carry[0]], carry + 1


def codes(state):
    return Codes(state.view(-1, 1, 1))


def dream(actions, **settings):
    policy = Script(torch.tensor(actions))
    start = torch.zeros(len(actions), dtype=torch.int64)
    prediction = Prediction(codes(start), start[:, None].float())
    noise = torch.rand(len(actions), H, 4)
    return imagine(Chain(), prediction, start, policy, H, noise, **settings), policy


def test_a_trajectory_lines_up_with_the_world():
    out, policy = dream([[1, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]])
    assert out.codes.indices[:, :, 0].tolist() == [[0, 1, 1, 2, 3, 4, 5], [0, 0, 0, 0, 0, 0, 1]]
    assert out.action.tolist() == [[1, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]]
    assert out.reward.tolist() == [[1, 10, 11, 21, 31, 41], [0, 0, 0, 0, 0, 1]]  # of the step, not of the next state
    assert out.terminated[0].tolist() == [False, False, False, False, True, True]
    assert out.alive[0].tolist() == [True] * 5 + [False] * 2  # the terminating step itself counts, what follows does not
    assert out.alive[1].all()
    assert torch.stack(policy.seen, 1).tolist() == out.codes.indices[:, :-1, 0].tolist()


def test_probable_ends_weigh_what_follows():
    """The rollout goes on with the probability that it did not end, and the lambda-return is discounted by it."""
    out, _ = dream([[1, 1, 1, 1, 1, 1]], expected_end=True)
    hard, _ = dream([[1, 1, 1, 1, 1, 1]])
    assert out.terminated.dtype == out.alive.dtype == torch.float32
    assert torch.allclose(out.alive, hard.alive.float()) and torch.equal(out.reward, hard.reward)
    half = torch.full((1, H), 0.5)
    value = torch.zeros(1, H + 1)
    got = lambda_return(torch.ones(1, H), half, value, gamma=1.0, lambda_=1.0)
    assert torch.allclose(got[0, 0], torch.tensor(sum(0.5**i for i in range(H))))


def test_imagined_lambda_returns_equal_exact_values():
    """With lambda 1 the return is the discounted sum up to the termination; value must not leak in behind it."""
    out, _ = dream([[1, 0, 1, 1, 1, 1]])
    gamma = 0.9
    got = lambda_return(out.reward, out.terminated, torch.full((1, H + 1), 1000.0), gamma=gamma, lambda_=1.0)
    rewards = [1, 10, 11, 21, 31]
    for t in range(5):
        exact = sum(gamma**i * r for i, r in enumerate(rewards[t:]))
        assert abs(got[0, t].item() - exact) < 1e-3, t


def test_lambda_return_by_hand():
    reward, end = torch.tensor([[1.0, 2.0]]), torch.tensor([[False, False]])
    value = torch.tensor([[5.0, 7.0, 11.0]])
    last = 2 + 0.5 * 11
    first = 1 + 0.5 * ((1 - 0.8) * 7 + 0.8 * last)
    assert torch.allclose(lambda_return(reward, end, value, gamma=0.5, lambda_=0.8), torch.tensor([[first, last]]))


def test_return_scale_follows_the_spread_and_is_at_least_one():
    scale = ReturnScale(rate=0.5)
    scale.update(torch.linspace(0, 0.1, 101))
    assert scale.scale() == 1
    for _ in range(40):
        scale.update(torch.linspace(0, 100, 101))
    assert abs(scale.scale().item() - 90) < 1e-2
