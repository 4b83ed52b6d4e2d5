"""What the CUDA kernels become and, on a machine with a GPU, whether they are right and how fast.

``nvcc`` and ``table`` compile without a GPU; ``choices`` and ``choice_table`` ask
``csrc/cuda/choose.h``. ``command`` is the check of a GPU: ``conformance``, ``correctness``,
``behaviour``, ``suites``, ``sanitize``, ``winners``, ``gradients`` and ``timings`` are its parts,
``job`` their order, ``record``, ``goals`` and ``summary`` the result.
"""
