"""Measures fused models beside everything else that could run them. Installed as ``.bench``.

``cases`` models and inputs, ``peers`` and ``engines`` the contestants, ``runner`` the interleaved
clock, ``memory`` and ``ceiling`` two more measurements, ``environment`` the machine, ``results``
the JSON file, ``job`` the whole of ``inception-fused bench``; ``figures``, ``report`` and
``readme`` turn results into pictures, a page and a table. Nothing but the command line imports it.
"""
