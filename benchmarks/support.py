"""What both benchmarks stand on: conversations of a given length, the stores that keep them, and measuring."""

from __future__ import annotations

import asyncio
import copy
import functools
import importlib.metadata
import json
import math
import os
import platform
import shutil
import sys
import uuid
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bson
import strands
from bson import ObjectId
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient
from strands import Agent
from strands.hooks import AfterInvocationEvent, HookProvider, HookRegistry, MessageAddedEvent
from strands.session import FileSessionManager, SessionManager
from strands.session.snapshot_session_manager import SnapshotSessionManager
from strands_mongodb_storage import MongoDBStorage
from strands_session_mongodb import MongoDBSessionManager as StrandsSessionMongoDB

from mongodb_session_manager import MongoDBSessionManagerFactory

REPOSITORY = Path(__file__).resolve().parent.parent
# The offline model of the examples and the recorder of the tests serve here as well.
sys.path += [str(REPOSITORY / "examples"), str(REPOSITORY / "tests")]

from offline_model import OfflineScriptedModel, Reply, ToolCall  # noqa: E402
from support_commands import CommandRecorder, Commands  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
