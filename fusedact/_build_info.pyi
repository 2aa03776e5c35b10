"""What the build writes: what this copy of the extension is for."""

version: str
torch: str
cuda: str | None
compiler: str
