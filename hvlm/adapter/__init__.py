"""What trains beside a model's own weights; the layers can be used on their own."""

from hvlm.adapter.bottleneck import BottleneckAdapter
from hvlm.adapter.lora import LoRAAdapter
from hvlm.adapter.prefix import PrefixAdapter

__all__ = ["BottleneckAdapter", "LoRAAdapter", "PrefixAdapter"]
