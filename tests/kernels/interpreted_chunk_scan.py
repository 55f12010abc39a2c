"""Run the chunk scan's kernels in Triton's interpreter, against the loop in float64.

This is a program for a process of its own. It prints JSON: the relative errors of states and of
gradients, by case.
"""

import json
import os

CASES = {  # rows, steps, M, D, and whether decays are matrices
    "matrices": (2, 5, 16, 16, True),
    "ragged": (1, 3, 20, 40, True),
    "one step": (2, 1, 7, 3, True),
    "two columns of tiles": (1, 4, 64, 33, True),
    "largest": (1, 2, 256, 16, True),
    "factors": (3, 6, 5, 3, False),
    "channels": (2, 3, 300, 1, False),
    "one number": (1, 7, 1, 1, False),
}


def differences(rows: int, steps: int, size: int, width: int, dense: bool) -> list[float]:
    """Return the errors of all states, and of the writes' and the initial state's gradients."""
    import torch
    from closeness import off

    from gam_scale.kernels import chunk_scan
    from gam_scale.model.memory.recurrence import _linear_scan, _linear_scan_backward

    generator = torch.Generator().manual_seed(0)
    decay = torch.randn(rows, steps, size, size if dense else 1, generator=generator)
    decay = decay / size**0.5 if dense else decay.sigmoid() * (decay > -1)  # some are 0
    write = torch.randn(rows, steps, size, width, generator=generator)
    initial = torch.randn(rows, size, width, generator=generator)
    grads = torch.randn(rows, steps + 1, size, width, generator=generator)
    found = chunk_scan.forward(decay, write, initial, "ieee")
    found_grads = chunk_scan.backward(grads, decay, "ieee")
    decay, write, initial, grads = (x.double() for x in (decay, write, initial, grads))
    return [
        off(found, _linear_scan(decay, write, initial, "ieee")),
        off(found_grads, _linear_scan_backward(grads, decay, "ieee")),
    ]


if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "1"
    print(json.dumps({name: differences(*case) for name, case in CASES.items()}))
