"""The side of bitsandbytes in tests/tests/interop.rs.

    python exchange.py make PATH         steps an optimizer and saves its states
    python exchange.py same PATH OTHER   loads OTHER and compares its states with those of `make`, saved in
                                         PATH, bit for bit; then steps both
    python exchange.py pass PATH OTHER   loads PATH and saves it as OTHER
"""
import sys
from pathlib import Path

import bitsandbytes as bnb
import torch
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).parents[2] / "examples/python"))
import lion_states

def setup():
    torch.manual_seed(5)
    model = torch.nn.Sequential(torch.nn.Linear(96, 64), torch.nn.Linear(64, 70).to(torch.bfloat16))
    return model, bnb.optim.Lion8bit(model.parameters(), lr=1e-3, weight_decay=0.1)

def step(model, optimizer, times, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(times):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()

def bits(tensors):
    return {name: (t.dtype, t.flatten().view(torch.uint8).tolist()) for name, t in tensors.items()}

command, path, other = (sys.argv + [None])[1:4]
model, optimizer = setup()
if command == "make":
    step(model, optimizer, 3, 1)
    lion_states.save(optimizer, model, path)
elif command == "same":
    step(model, optimizer, 3, 1)
    fresh_model, fresh = setup()
    fresh_model.load_state_dict(model.state_dict())
    lion_states.load(fresh, fresh_model, other)
    states = [o.state_dict()["state"] for o in (optimizer, fresh)]
    assert len(states[0]) == len(states[1]) == 4
    for index, state in states[0].items():
        given = states[1][index]
        assert state["step"] == given["step"] == 3
        [wanted, given] = [s[lion_states.WRAPPED] for s in (state, given)]
        assert wanted.keys() == given.keys() and all(wanted[k].shape == given[k].shape for k in wanted)
        assert bits(wanted) == bits(given), index
    assert bits(load_file(path)) == bits(load_file(other))
    for m, o in ((model, optimizer), (fresh_model, fresh)):
        step(m, o, 2, 2)
    assert bits(dict(model.named_parameters())) == bits(dict(fresh_model.named_parameters()))
else:
    lion_states.load(optimizer, model, path)
    lion_states.save(optimizer, model, other)
print("done")
