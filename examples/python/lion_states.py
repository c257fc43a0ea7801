"""Carries states between optimizers of bitsandbytes and safetensors files of lion::interop.

    save(optimizer, model, path)      what lion::interop::import reads
    load(optimizer, model, path)      what lion::interop::export wrote

Parameters have the names of model.named_parameters().
"""
import torch
from safetensors.torch import load_file, save_file

KEYS = ("state1", "absmax1", "qmap1")
WRAPPED = "__bnb_optimizer_quant_state__"  # where state_dict() puts them since bitsandbytes 0.49

def named(optimizer, model):
    names = {id(p): name for name, p in model.named_parameters()}
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return {index: (names[id(p)], p) for index, p in enumerate(params)}

def save(optimizer, model, path):
    tensors, params = {}, named(optimizer, model)
    for index, state in optimizer.state_dict()["state"].items():
        name, held = params[index][0], {**state, **state.get(WRAPPED, {})}
        tensors[f"{name}.step"] = torch.tensor(int(held["step"]))
        for key in KEYS:
            if key in held:  # cloned, as parameters share one codebook
                tensors[f"{name}.{key}"] = held[key].cpu().clone()
    save_file(tensors, path)

def load(optimizer, model, path):
    tensors, state_dict = load_file(path), optimizer.state_dict()
    for index, (name, p) in named(optimizer, model).items():
        state = {key: tensors[f"{name}.{key}"] for key in KEYS if f"{name}.{key}" in tensors}
        if state:
            state["state1"] = state["state1"].view(p.shape)
            state_dict["state"][index] = {"step": int(tensors[f"{name}.step"]), **state}
    optimizer.load_state_dict(state_dict)
