"""ZO-Offload: MeZO on a model whose blocks live in host memory (Wang et al. 2025, arXiv:2503.12668: "ZO2").

Files, from the bottom up:

- `pieces`: what of a transformer travels, and which modules wait for it.
- `formats`: how a piece crosses the bus: as it is, or in 8 or 4 bits.
- `memory`: pinned host memory without waste, and a file in its place.
- `store`, `load`: pieces in that memory, from a model, a checkpoint or a random start, one after the other.
- `slots`: the few places on the device, and the order of uploads and downloads.
- `moves`: updates that are noted down and made when a piece is next on the device.
- `relay`: several forward passes that take turns at every piece.
- `engine`: all of it together; `method`: MeZO on top.
- `head`: a loss whose logits are never whole; `roofline`, `simulate`: what a step should take, and when what runs.
"""
