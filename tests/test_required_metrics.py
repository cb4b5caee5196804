"""What a family of world models must be measured by: numbers that would vanish unnoticed if they became not applicable."""

import numpy as np
import pytest
import torch
from posterior import posterior_model

from tokenworld import WorldModel
from tokenworld.data.record_format import Episode
from tokenworld.data.replay import Replay
from tokenworld.envs.known_world import World
from tokenworld.evaluation import tiers
from tokenworld.evaluation.metrics import baselines
from tokenworld.evaluation.simulators.tabular import Tabular
from tokenworld.evaluation.statistics.metric_spec import NO_LIKELIHOOD, OF_POSTERIOR
from tokenworld.interfaces import Steps

FRAME, ACTIONS = (3, 16, 24), 4
ALL = {  # whatever the codes are
    "tokenizer.psnr", "tokenizer.event_recall",  # what the tokenizer loses
    "rollouts.held_out_horizon", "rollouts.distance", "rollouts.first_step_distance", "next_frame.energy_distance",
    "terminations.log_loss", "terminations.branch_error", "terminations.survival_gap", "rewards.branch_error",
    "delta_psnr.gain", "proxies.c2st@1", "memory.recall",
}  # fmt: skip
TOKENS = ALL | {
    "code_length.bits", "code_length.saved_bits", "calibration.gap", "next_frame.kl", "next_frame.impossible_mass",
    "rollouts.held_out_exposure_bias", "action_sensitivity.saved_bits", "action_effects.error", "agents.interventional_kl",
    "state_identity.compression", "arrow_of_time.undo_mass", "tokenizer.codebook_usage", "code_length.baseline_bits@bigram",
    "proxies.self_consistency",
}  # fmt: skip
OF_POSTERIORS = ALL | {"code_length.posterior_kl"}
REQUIRED = {"token": TOKENS, "categorical": TOKENS, "dreamer": OF_POSTERIORS, "posterior": OF_POSTERIORS, "vectors": ALL}


def replay_of(world: World, count: int) -> Replay:
    """Episodes of random play in the known world."""
    replay, uniform = Replay(), np.full(world.behavior.shape, 1 / world.actions)
    for played in world.play(uniform, np.random.default_rng(0), count):
        states, terminated = played["state"], played["terminated"]
        rewards = world.reward[states[:-1], played["action"]].astype(np.float32)
        truncated = np.zeros_like(terminated)
        truncated[-1] = not terminated[-1]
        replay.add(Episode(world.pictures[states], played["action"], rewards, terminated, truncated))
    return replay


def model_of(family: str, steps: Steps) -> WorldModel:
    """Untrained, but with a dictionary of what is seen in steps (1, T), where there is one."""
    torch.manual_seed(0)
    if family == "posterior":
        return posterior_model()
    recipe = {"token": "quickstart", "categorical": "storm", "dreamer": "dreamer_v3", "vectors": "world_models"}[family]
    model = WorldModel.from_recipe(recipe, "overlay=debug", frame=FRAME, actions=ACTIONS).eval()
    model.tokenizer.prepare(lambda: (steps, None))
    model.tokenizer.train().loss(steps)
    model.eval().share_codebook()
    return model


@pytest.mark.parametrize("family", REQUIRED)
def test_a_family_is_measured_by(family):
    world = World()
    held_out = replay_of(world, 24)
    rows = np.arange(held_out.rows)[None]
    model = model_of(family, held_out.gather(rows))

    def codes_of(rows):
        return model.encode(held_out.gather(rows))

    counts = None
    if REQUIRED[family] is TOKENS:
        counts = baselines.fit(codes_of(rows).indices[0], held_out.gather(rows).first[0], model.shapes.vocab_size)
    of_data, pictures, _ = tiers.tier_a(model, held_out, codes_of, counts, frames=300)
    of_branches, more = tiers.tier_b(model, Tabular(world), states=12, budget=120.0)
    metrics = {metric.id: metric for metric in (*of_data, *of_branches)}
    lacking = {id: metrics[id].reason if id in metrics else "absent" for id in REQUIRED[family]
               if id not in metrics or metrics[id].value is None}  # fmt: skip
    assert not lacking, lacking
    assert {"drift", "distance", "memory"} <= {*pictures, *more}
    reason = OF_POSTERIOR if REQUIRED[family] is OF_POSTERIORS else NO_LIKELIHOOD
    because = {id for id, metric in metrics.items() if metric.reason == reason}
    assert (REQUIRED[family] is not TOKENS) == bool(because) and not because & REQUIRED[family]
    others = {"tokenizer.codebook_usage", "code_length.baseline_bits@bigram"}
    assert REQUIRED[family] is TOKENS or TOKENS - ALL - because <= others
