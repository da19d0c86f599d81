"""Trains each method for three steps, on one process or shared among several, and saves the adapters.

Several processes each hold the whole model (ddp) or a part of every layer (fsdp).

Started by `test_task_ids.py`, under torchrun and under accelerate launch.
"""

import gc
import os
import sys

import torch
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers.models.t5.modeling_t5 import T5Block

import minitensorpoly as mtp
from common import METHODS, adapted_t5, make_batch


def parallelize(model, way):
    if way == "ddp":
        return DistributedDataParallel(model)
    if way == "fsdp":
        for block in [module for module in model.modules() if isinstance(module, T5Block)]:
            fully_shard(block)
        fully_shard(model)
    return model


def train(method, way, rank, size):
    model = adapted_t5(method).train()
    parallel = parallelize(model, way)
    optimizer = torch.optim.SGD(mtp.parameter_groups(model, lr=0.05, router_lr=0.5))
    for step in range(3):
        share = {name: column.chunk(size)[rank] for name, column in make_batch(rows=8, seed=step).items()}
        parallel(**share).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = {name: p.detach() for name, p in mtp.adapter_parameters(model).items()}
    return {name: p.full_tensor() if way == "fsdp" else p for name, p in trained.items()}


def main(file, way):
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if size > 1:
        torch.distributed.init_process_group("gloo")
    trained = {method: train(method, way, rank, size) for method in METHODS}
    if rank == 0:
        torch.save(trained, file)
    if size > 1:
        # A DDP model that outlives its process group may wait for gloo's thread at the exit, holding
        # the interpreter's lock that this thread waits for: let go of every DDP model first.
        gc.collect()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
