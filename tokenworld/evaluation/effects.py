"""Does the model use its actions? M6, tier A: from held-out data alone.

Sensitivity is not correctness: a model with left and right swapped is as sensitive as a perfect one, and pays for it in code
length; that an action has the right effect is for branches to tell (M7).
"""

from __future__ import annotations

import numpy as np

from tokenworld.evaluation import intervals
from tokenworld.evaluation.records import Metric, Scored


def action_sensitivity(scored: Scored) -> list[Metric]:
    """M6: bits that knowing the action saves over an action drawn from those of the data, and how well the frame tells which
    action was taken: argmax_a of q(frame | h, a) pi_b(a), beside always naming the commonest."""
    names = {"M6.shuffled": "Bits that the right action saves", "M6.inverse": "Actions recognised by their effect",
             "M6.blind": "States in which actions make no difference to the model"}  # fmt: skip
    A = 0 if scored.bits_by_action is None else scored.bits_by_action.shape[1]
    counts = np.bincount(scored.action, minlength=A) if A else np.zeros(0)
    if (counts > 0).sum() < 2:
        reason = "frames were not scored under other actions" if A == 0 else "the held-out data hold a single action"
        return [Metric(id, name, None, status="skipped" if A == 0 else "not_applicable", reason=reason)
                for id, name in names.items()]  # fmt: skip
    share = counts / counts.sum()
    own = scored.bits_by_action[np.arange(len(scored.action)), scored.action]
    saved = scored.bits_by_action @ share - own
    saving, saving_ci, n = intervals.ratio(saved, None, scored.cluster)
    behaviour = np.broadcast_to(share, scored.bits_by_action.shape) if scored.behaviour is None else scored.behaviour
    with np.errstate(divide="ignore"):
        named = (np.log2(behaviour) - scored.bits_by_action).argmax(1) == scored.action
    right, right_ci, _ = intervals.ratio(named, None, scored.cluster)
    alike = (np.ptp(scored.bits_by_action, axis=1) < 0.05).astype(float)
    blind, blind_ci, _ = intervals.ratio(alike, None, scored.cluster)
    common = dict(n_clusters=n, n_samples=len(saved), status="underpowered" if n < intervals.FEW else "ok",
                  reason=f"only {n} episodes" if n < intervals.FEW else "")  # fmt: skip
    return [
        Metric("M6.shuffled", names["M6.shuffled"], saving, "bits/frame", "higher", saving_ci, floor=0.0, values=saved,
               **common),
        Metric("M6.inverse", names["M6.inverse"], right, "share", "higher", right_ci, floor=float(share.max()), **common),
        Metric("M6.blind", names["M6.blind"], blind, "share", "none", blind_ci, **common),
    ]  # fmt: skip
