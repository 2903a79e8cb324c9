"""DDP's gradient buckets, laid out once and for all before the first step.

DDP lays its buckets out anew after the first backward pass, in the order in which gradients were ready. Which gradients
share a bucket decides in which order their sum is taken over three ranks and more, and so its last bits: a resumed run,
whose first step uses the first layout again, would differ from one that was never touched.
"""

import torch
from lightning.pytorch import Trainer
from torch.nn.parallel import DistributedDataParallel


def settle_buckets(trainer: Trainer) -> None:
    """Have DDP lay out its buckets now, in the same order at every start. Collective; the gradients are left unset.

    Source: torch/csrc/distributed/c10d/reducer.cpp; `rebuild_buckets` takes the order in which gradients became ready
    in the one backward pass before it, and does its work only once. Here that pass is one over the parameters alone.
    """
    model = trainer.strategy.model
    # The sum of two does not depend on their order; with unused parameters DDP keeps its first layout.
    if not isinstance(model, DistributedDataParallel) or trainer.world_size < 3 or model.find_unused_parameters:
        return
    parameters = [one for one in model.parameters() if one.requires_grad]
    if any(one._backward_hooks or one._post_accumulate_grad_hooks for one in parameters):
        return  # the user's own hooks would take these for gradients of a step
    model.reducer.prepare_for_forward()
    with torch.enable_grad():
        # Later operations are differentiated first: the gradients are ready in the reverse order of the parameters.
        total = sum((one.flatten()[:1].sum() * 0 for one in parameters), torch.zeros((), device=parameters[0].device))
    model.reducer.prepare_for_backward([])
    torch.autograd.backward(total)
    model.reducer._rebuild_buckets()
    for one in parameters:
        one.grad = None
