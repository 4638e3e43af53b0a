"""The library: ``hvlm.load`` and ``hvlm.build`` give a ``Model`` that answers. docs/library.md."""
