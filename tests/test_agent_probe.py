"""Branches of another agent on real models: what a policy would do at a place, and how often training data hold it."""

import math

import numpy as np
import pytest
import torch
from conftest import network
from test_branch_probe import A, Dial, tiny

from tokenworld.evaluation import tiers
from tokenworld.evaluation.metrics import agents
from tokenworld.evaluation.probes import branches, other_agent
from tokenworld.evaluation.probes.policies import Constant, Mixed
from tokenworld.interfaces import Codes, Steps
from tokenworld.policies.actor_critic import ActorCritic


def test_probabilities_are_those_of_the_policy():
    model, place = tiny(), branches.branch_states(Dial(), 1, 3, math.inf)[0]

    class Spread(Mixed):
        def follow(self, view, carry):
            return carry

    for share in (0.0, 0.5):
        found = other_agent._probabilities(model, Spread(Constant(2), share, A), place)
        assert found == pytest.approx(np.full(A, share / A) + (1 - share) * np.eye(A)[2], abs=1 / 64)


@pytest.mark.parametrize("view", ["codes", "codes_h", "pixels", "frame"])
@torch.no_grad()
def test_probabilities_of_an_actor(view):
    """Against its softmax, whether it looks at codes, at h or, with a memory, at pixels: after all frames of the place."""
    torch.manual_seed(0)
    model, place = tiny(), branches.branch_states(Dial(), 1, 3, math.inf)[0]
    policy = ActorCritic(shapes=model.shapes, network=network(view, 8)).eval()
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=1.0)
    found = other_agent._probabilities(model, policy, place)

    T, none = len(place.obs), torch.zeros(1, len(place.obs), dtype=torch.bool)
    first, action = torch.arange(T).unsqueeze(0) == 0, torch.zeros(1, T, dtype=torch.int64)
    action[0, :-1] = torch.as_tensor(place.action)
    obs = torch.from_numpy(place.obs).unsqueeze(0)
    steps = Steps(obs, action, torch.zeros(1, T), none, none, first, ~none, ~none)
    codes, net = model.encode(steps), policy.network
    carry = policy.start(1)
    for t in range(T):
        prediction, _ = model.start(steps[:, : t + 1])  # read anew, without a state
        seen = net.read_view(model.view_of(Codes(codes.indices[:, t : t + 1]), prediction.h))
        features, carry = net(seen, carry)
    expected = policy.actor(features)[0].softmax(-1).numpy()
    assert found == pytest.approx(expected, abs=0.01) and T > 1
    blank, _ = net(seen, policy.start(1))
    forgot = policy.actor(blank)[0].softmax(-1).numpy()
    assert view != "pixels" or np.abs(forgot - expected).max() > 0.02, "memory must matter, or this test says nothing"


def test_support_counts_codes_with_actions():
    codes = np.array([[1, 2], [1, 2], [3, 4], [1, 2]])
    support = other_agent.support_of(codes, np.array([0, 1, 1, 0]), np.array([True, True, True, False]), 2)
    assert support(np.array([[1, 2], [3, 4], [9, 9]])).tolist() == [[1, 1], [0, 1], [0, 0]]


def test_gaps_of_a_policy_that_plays_at_random_are_none():
    """Its states and actions are the other agent's: do gap exactly 0, transfer gap 0 within its interval."""
    model, simulator = tiny(), Dial()
    other = branches.branches(model, simulator, branches.branch_states(simulator, 40, 2, math.inf), math.inf)

    class Random(Mixed):
        def follow(self, view, carry):
            return carry

    mine = other_agent.branches_of_policy(
        model, Random(Constant(0), 1.0, A), simulator, count=40, context=2, deadline=math.inf,
        support=lambda codes: np.ones((len(codes), A)),
    )  # fmt: skip
    found = {metric.id: metric for metric in agents.causal_gap(**tiers._of_two_agents(mine, other))}
    assert abs(found["agents.intervention_gap"].value) < 0.05 and found["agents.behavior_kl"].value > 0
    low, high = found["agents.transfer_gap"].ci
    assert low <= 0.05 and high >= -0.05 and agents.by_support(mine, parts=5)["count"].sum() == 40 * A
