"""The sections of an experiment: one frozen model each. What is traced is marked here and nowhere else."""

from fljax.sections.base import Section, Traced
from fljax.sections.channel import ChannelConfig, HeConfig
from fljax.sections.dropout import CompressConfig, DevicesConfig, DropoutConfig
from fljax.sections.learning import ClientConfig, DataConfig, ModelConfig, SamplerConfig, ServerConfig
from fljax.sections.privacy import PURE, PrivacyConfig
from fljax.sections.robust import AttackConfig, RobustConfig
from fljax.sections.running import DrawnConfig, PerfConfig, SearchConfig, SweepConfig
from fljax.sections.secure import SecureConfig

__all__ = [
    "PURE",
    "AttackConfig",
    "ChannelConfig",
    "ClientConfig",
    "CompressConfig",
    "DataConfig",
    "DevicesConfig",
    "DrawnConfig",
    "DropoutConfig",
    "HeConfig",
    "ModelConfig",
    "PerfConfig",
    "PrivacyConfig",
    "RobustConfig",
    "SamplerConfig",
    "SearchConfig",
    "Section",
    "SecureConfig",
    "ServerConfig",
    "SweepConfig",
    "Traced",
]
