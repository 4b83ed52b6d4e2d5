"""Measures fused models beside everything else that could run them. Installed as ``.bench``.

``cases`` and ``kernelbench`` models and inputs; ``peers`` the contestants, made by ``stock``,
``engines`` and ``tensorrt``; ``check`` whether their outputs agree, ``runner`` the interleaved
clock, ``device`` a GPU's; ``memory`` and ``ceiling`` two more measurements, ``environment`` the
machine, ``results`` the JSON file; ``job`` the whole of ``inception-fused bench`` in one process,
``processes`` in several, ``breakdown`` the steps of a module; ``report``, ``readme`` and the charts
turn results into a page, pictures and a table. ``fused`` is one model for ``tuning`` and
``profile``, which has ``steps``, ``trace`` and ``drawing``; ``compare`` judges two runs of
``test_modules``. Nothing but the command line imports it.
"""
