"""Questions that only a scripted world answers, put to a real model of the known world: does it remember the color, and does
it undo the broken vase?

Both are asked through whole frames: two that differ in one tile alone are drawn and tokenized, whatever the tokenizer. Where
frames have no probability the model's own next frames are drawn, and the color is read in their tile.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tokenworld.envs.known_world import LEFT, RIGHT, SIDE, STATE, STAY, TILES, World, choose, draw
from tokenworld.evaluation.probes import branches
from tokenworld.evaluation.probes.branches import BranchState
from tokenworld.evaluation.probes.codes import have_equality, history_of
from tokenworld.evaluation.records import Recalls, Undos
from tokenworld.evaluation.simulators.tabular import Tabular
from tokenworld.evaluation.statistics import draws
from tokenworld.world_model import WorldModel

DELAYS = (2, 5, 10, 30)  # steps for which the color is hidden
TRIALS = 20  # of each delay and color
DRAWS = 64  # next frames of which the color is read, where frames have no probability
VASES = 40  # states with a broken vase, at most


def recalls(world_model: WorldModel, world: World, seed: int = 0) -> Recalls:
    """The actor sees the color, goes to the right, waits k steps and comes back: which of the two frames that differ in the
    color alone does the model expect? It reads the last frames, as many as its context holds."""
    rng, rows = np.random.default_rng(seed), []
    for k in DELAYS:
        for color in (0, 1):
            for _ in range(TRIALS):
                state = world.index(0, int(rng.integers(4)), 0, int(rng.integers(2)), color)
                states, actions = [state], []
                for action, cell in [(RIGHT, 1), *[(STAY, 1)] * k, (LEFT, 0)]:
                    p = world.transition[states[-1], action] * (world.states[:, 0] == cell)  # without slips
                    states.append(int(choose(p[None], rng)[0]))
                    actions.append(action)
                rows.append((k, color, _expects(world_model, world, states, actions)))
    delay, truth, answer = np.array(rows).T
    return Recalls(np.arange(len(rows)), delay.astype(int), truth, answer)


def _expects(world_model: WorldModel, world: World, states: list[int], actions: list[int]) -> float:
    """The model's probability of color 1, given that the last frame is one of the two."""
    device, context = world_model.device, history_of(world_model.backbone)
    seen = np.stack([world.render(s) for s in states[:-1]])[-context:]
    taken = np.array(actions[:-1])[-(len(seen) - 1) :] if len(seen) > 1 else np.zeros(0, int)
    branch_state = BranchState(None, 0, 0, seen, taken)
    both = [world.index(*world.states[states[-1], :4], color) for color in (0, 1)]
    state, bits = branches.read_state(world_model, branch_state, device), None
    if have_equality(world_model):
        codes = branches.encode_frames(world_model, np.stack([world.render(s) for s in both]), device)
        bits = branches.score_frames(world_model, state, torch.full((2,), actions[-1], device=device), codes)
    if bits is None:
        key = draws.name_of(*states, *actions)
        noise = draws.uniform(np.array([key]), (DRAWS, world_model.decoding.noise_size), device=device)[0]
        many = state.select(torch.zeros(DRAWS, dtype=torch.int64, device=device))
        prediction, _ = world_model.step(many, torch.full((DRAWS,), actions[-1], device=device), noise)
        return share_of_color(world_model.frames(prediction.codes)[:, 0])
    return float(1 / (1 + np.exp2(np.clip(bits[1] - bits[0], -60, 60))))


def share_of_color(frames: Tensor) -> float:
    """Of frames (n, 3, 16, 24) uint8 the share that shows color 1, by the glyph of the color's tile that is nearest; a frame
    that shows no color counts one half."""
    glyphs = torch.from_numpy(draw(np.array([[0, 0, 0, 0, 0, value] for value in range(TILES[-1])])))  # (3, 3, 16, 24)
    shown, glyphs = (x[..., -SIDE:, -SIDE:].cpu().double().flatten(1) for x in (frames, glyphs))
    nearest = torch.cdist(shown, glyphs).argmin(1)  # 0: no color, 1 and 2: the colors 0 and 1
    return float(((nearest == 2).double() + (nearest == 0).double() / 2).mean())


def undos(world_model: WorldModel, simulator: Tabular, deadline: float, seed: int = 0) -> Undos:
    """The model's mass, after every action, on a whole vase where it is broken."""
    world, device = simulator.world, world_model.device
    history = history_of(world_model.backbone, branches.READ)
    branch_states = branches.branch_states(simulator, 8 * VASES, history, deadline, seed)
    broken = [branch_state for branch_state in branch_states if world.states[branch_state.hash, 2] == 1][:VASES]
    rows: list[tuple[int, float]] = []
    for branch_state in broken:
        whole = np.ravel_multi_index(world.states[branch_state.hash] * [1, 1, 0, 1, 1], STATE)
        pair = np.stack([world.render(branch_state.hash), world.render(int(whole))])
        codes = branches.encode_frames(world_model, pair, device).cpu().numpy()  # (2, K)
        at = np.flatnonzero(codes[0] != codes[1])  # the codes that show the vase
        state = branches.read_state(world_model, branch_state, device)
        own = branches.own_distribution(world_model, state, torch.arange(simulator.actions), branch_state.key)
        mass = own["mean"][:, at, codes[1, at]].mean(-1) if len(at) else np.zeros(simulator.actions)
        rows += [(branch_state.episode, m) for m in mass]
    cluster, mass = np.array(rows).reshape(-1, 2).T
    return Undos(cluster.astype(int), mass)
