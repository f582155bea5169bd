"""The core's own plugin: it registers through the hooks that a third party uses. Importing it does not import torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from qplug.core.component import DataSource, ModelSource
from qplug.core.task_table import TASK_PATHS
from qplug.core.types import Adapter, BackendOffer, Extra
from qplug.data.coco import Coco
from qplug.data.digits import Digits
from qplug.data.folder import Folder
from qplug.data.hf import HuggingFace
from qplug.data.masks import Masks
from qplug.data.memory_source import MemoryData
from qplug.data.shapes import Shapes
from qplug.data.text import Text
from qplug.hooks.specs import hookimpl
from qplug.models.adapters import ADAPTERS
from qplug.models.blocks import BLOCKS
from qplug.models.detector_source import DetectorModel
from qplug.models.in_memory import MemoryModel
from qplug.models.sources import ImportedModel, TimmModel, ZooModel
from qplug.models.transformers import TransformersModel
from qplug.models.transformers_vision import TransformersVisionModel
from qplug.quantization.number_formats import NUMBER_FORMATS

MODELOPT = Extra("modelopt", "pip install 'qplug[modelopt]'")


@hookimpl
def qplug_models() -> Iterable[type[ModelSource]]:
    """``timm``, ``zoo``, ``import``, ``detector``, ``transformers``, ``transformers_vision``, ``memory``."""
    own = [TimmModel, ZooModel, ImportedModel, DetectorModel, MemoryModel]
    return [*own, TransformersModel, TransformersVisionModel]


@hookimpl
def qplug_datasets() -> Iterable[type[DataSource]]:
    """``coco``, ``digits``, ``folder``, ``hf``, ``masks``, ``memory``, ``shapes_detection``, ``text``."""
    return [Coco, Digits, Folder, HuggingFace, Masks, MemoryData, Shapes, Text]


@hookimpl
def qplug_tasks() -> Mapping[str, str]:
    """``classification`` and all others of ``TASK_PATHS``."""
    return TASK_PATHS


@hookimpl
def qplug_backends() -> Mapping[str, BackendOffer]:
    """``brevitas`` and ``modelopt``; neither refuses anything that a recipe can say."""
    return {
        "brevitas": BackendOffer("qplug.quantization.backends.brevitas:BrevitasBackend"),
        "modelopt": BackendOffer("qplug.quantization.backends.modelopt:ModelOptBackend", needs=(MODELOPT,)),
    }


@hookimpl
def qplug_quantizers() -> Mapping[str, str]:
    """``uniform``, ``regions`` and ``log``."""
    return {
        **{number_format.kind: number_format.path for number_format in NUMBER_FORMATS.values()},
        "log": "qplug.quantization.quantizers.log:LogQuantizer",
        "regions": "qplug.quantization.quantizers.regions:RegionQuantizer",
    }


@hookimpl
def qplug_adapters() -> Iterable[Adapter]:
    """The attention of timm's ViT, DeiT and Swin, of BERT and DistilBERT; timm's own convolution and linear."""
    return ADAPTERS


@hookimpl
def qplug_blocks() -> Iterable[str]:
    """Those of timm, torchvision and transformers."""
    return BLOCKS
