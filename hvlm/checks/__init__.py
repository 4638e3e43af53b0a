"""The contract tests as code: what every room is held to, for our tests and for ``hvlm check mypackage``.

``tiny`` makes models of a few thousand weights, ``contract`` checks classes and YAMLs, ``models`` whole models,
``leaks`` that no text reaches what stands before it, ``rooms`` single rooms, ``decoding`` writing with a cache. A check
is a function of a ``Variant`` or a ``Case``, fails by an assert, and needs no pytest. ``run`` says which belong to a
room.
"""
