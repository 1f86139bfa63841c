"""Wrong answers to lab 04 that share nothing with the solution, for `lab04`."""

KEPT_BY_EACH = """
total, passes = 0, False
for operation in chain:
    if isinstance(operation, tuple):
        _, out, trains = operation
        total += width * trains
        passes = passes or trains
        width = out
    elif passes and operation != "double":
        total += width
return 4 * n * total
"""

KEPT_MEASURED = """
import torch
x, total = torch.zeros(n, width), 0
return x.nbytes
"""

STAYS_BY_LABKIT = """
real, _ = made(model, itemsize=itemsize, optimizer=optimizer, master=master)
return predict.standing(real, 1) | {"gradients": predict.gradients(real, 1)}
"""

PEAK_SUM_OF_ALL = """
kept = model.layers * block + 12 * tokens * model.vocab
return dict.fromkeys(MOMENTS, sum(stays.values()) + kept)
"""

PEAK_LORE = """
return dict.fromkeys(MOMENTS, sum(stays.values()))
"""

KEPT_BY_A_FLAG = """
total, passes, last = 0, False, False
for operation in chain:
    if isinstance(operation, tuple):
        _, out, trains = operation
        total += width * (trains and not last)
        passes, width, last = passes or trains, out, False
    elif passes and operation == "silu":
        total += 0 if last else width
        last = False
    elif passes and operation != "double":
        total += width
        last = True
return 4 * n * total
"""

KEPT_THROUGH_DOUBLE = """
kept, passes, place = {}, False, 0
for operation in chain:
    if isinstance(operation, tuple):
        _, out, trains = operation
        if trains:
            kept[place] = width
        passes, width = passes or trains, out
    elif operation == "double":
        continue
    elif passes:
        kept[place + (operation != "silu")] = width
    place += 1
return 4 * n * sum(kept.values())
"""
