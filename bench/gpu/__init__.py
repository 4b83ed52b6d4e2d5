"""What the CUDA kernels become and, on a machine with a GPU, whether they are right and how fast.

``nvcc`` and ``table`` compile without a GPU; ``choices`` asks ``csrc/cuda/choose.h``. ``command`` is
the check of a GPU, of which ``conformance``, ``correctness``, ``behaviour``, ``suites``,
``sanitize`` and ``timings`` are the parts, ``job`` the order, ``record`` and ``summary`` the result.
"""
