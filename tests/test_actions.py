"""Action encoders."""

import torch

from tokenworld.actions import ActionTable, ShuffledAction


def test_shuffled_actions_come_from_other_windows_while_learning_and_only_then():
    torch.manual_seed(0)
    action = torch.arange(64).unsqueeze(1).expand(64, 3) % 8  # each window has one action
    encoder = ShuffledAction(actions=8, dim=4)
    plain = ActionTable(actions=8, dim=4)
    plain.load_state_dict(encoder.state_dict())
    assert torch.equal(encoder.eval()(action), plain(action))
    shuffled = encoder.train()(action)
    is_own = (shuffled == plain(action)).all(-1)
    assert is_own.float().mean() < 0.5
    assert torch.equal(shuffled[:, :1].expand_as(shuffled), shuffled)  # whole windows are exchanged
    assert sorted(shuffled[:, 0].tolist()) == sorted(plain(action)[:, 0].tolist())
