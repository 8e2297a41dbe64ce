"""Every bound on bytes, counts, depth and time, each with its reason.

Two kinds stand elsewhere: options of the driver in ``_client/clients.py``, and what ``_local`` waits for, whose keeper
imports nothing of this package.
"""

from __future__ import annotations

# --- what the server takes ------------------------------------------------------------------------------------------

SERVER_DOCUMENT_BYTES = 16 * 1024 * 1024
"""MongoDB refuses a larger document, and a larger update."""

FULL_DOCUMENT_BYTES = SERVER_DOCUMENT_BYTES - 64 * 1024
"""What fits into a session document for certain: the header and counters that change with it need little."""

INT32_MAX = 2**31 - 1
"""The largest number that ``$slice``, a limit and a batch size take."""

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
"""BSON holds integers from here to here. Ids of messages and offsets stay below the latter."""

# --- ids, names and keys --------------------------------------------------------------------------------------------

MAX_ID_BYTES = 1024
"""UTF-8 bytes of the id of a session, an agent, a graph or a swarm.

That is what Amazon S3 takes as a key, so whatever Strands' ``S3SessionManager`` can keep has room. An id stands in the
``_id`` and the index of every segment and search document and in every blob; that of an agent several times in each
update, up to three times as long once it is percent-encoded.
"""

CACHED_NAMES = 256
"""Names whose keys and projections are kept: a service meets the same few agents, models and tools again and again."""

MAX_SHOWN_CHARACTERS = 100
"""Characters of a refused value in an error: longer than what people take for an id, short enough for a log's line."""

MAX_SHOWN_BITS = 128
"""An integer of more bits is not printed in an error: Python refuses to print a very long one."""

MAX_SHOWN_SESSIONS = 10
"""An error about many sessions names this many."""

# --- values ---------------------------------------------------------------------------------------------------------

MAX_VALUE_BYTES = 15 * 1024 * 1024
"""What one message, or one field of an agent, may have as BSON: MongoDB takes 16 MB, and a session needs a header."""

MAX_ENCODED_DEPTH = 80
"""Levels of a value that are stored as documents; deeper ones as BSON bytes.

MongoDB refuses documents nested deeper than 180 levels, 175 inside a ``$push``; a value lies about ten levels down.
"""

EXACTLY_MEASURED_BYTES = 2 * 1024
"""What is smaller is not measured exactly: that takes as long as to encode it.

A list of flags has eight times as many bytes as it seems, and a turn may collect messages until it seems to have half
of what MongoDB takes. Of messages below this bound, that would be thousands.
"""

# --- metadata and feedback ------------------------------------------------------------------------------------------

MAX_METADATA_BYTES = 4 * 1024 * 1024
"""What one call may bring of metadata, as BSON, and what may be there already: MongoDB takes 16 MB in a document, and a
conversation needs room.
"""

MAX_METADATA_DEPTH = 100
"""Levels of metadata and feedback, those of a dotted key and of its value together. MongoDB's own limit is near 200."""

MAX_METADATA_KEY_CHARACTERS = 1000
"""Characters of a metadata key: MongoDB would take 16 MB of them, and repeat them in every error."""

MAX_METADATA_INDEX = 999
"""The highest number in a metadata key behind its first part: in a list MongoDB fills all before it with nulls."""

MAX_INDEXED_METADATA_FIELDS = 28
"""Metadata fields that are indexed, with two indexes each: MongoDB takes 64 in a collection, and eight are others."""

MAX_CACHED_METADATA_BYTES = 64 * 1024
"""Larger metadata is not held in memory: a thousand such sessions would fill the memory of a process."""

MAX_EMBEDDED_FEEDBACKS = 200
"""A session document with this many feedbacks is archived from before it takes another."""

MAX_EMBEDDED_FEEDBACK_BYTES = 256 * 1024
"""Or with this many bytes of them."""

MAX_RATING_CHARACTERS = 100
"""Longer ratings are read up to here, so that a summary stays a small read."""

# --- metrics --------------------------------------------------------------------------------------------------------

MAX_TOKENS = 2**53
"""Larger numbers are not taken for counts or milliseconds: what JSON and floating point hold exactly ends here."""

MAX_INTEGER_INCREMENT = 2**40
"""What is added to a running total of 64 bits as an integer.

Larger amounts are added as floating point, which makes the total such a number: it grows less exact, but never beyond
what MongoDB can add to.
"""

LAST_LATENCY_DOUBLING = 63
"""No latency in milliseconds is longer than two to this power: it would be no number of 64 bits."""

# --- guardrails -----------------------------------------------------------------------------------------------------

MAX_GUARDRAIL_EVENTS = 100
"""So many of the newest interventions are listed in the session document."""

MAX_GUARDRAIL_POLICIES = 20
"""Policies that are kept of one intervention."""

MAX_GUARDRAIL_TEXT_CHARACTERS = 100
"""Characters of a policy's name and of a guardrail's id and version."""

# --- a turn ---------------------------------------------------------------------------------------------------------

EARLY_COMMIT_BYTES = 8 * 1024 * 1024
"""A turn that has collected this much commits early, far from the 16 MB that MongoDB takes in one update."""

MAX_COMMIT_BYTES = 15 * 1024 * 1024
"""A message that would make a commit larger than this begins the next one: MongoDB takes 16 MB in an update."""

KEPT_BEYOND_LIVE = 1_000
"""A manager remembers this many messages that have left the live conversation: a snapshot may bring them back."""

READ_ACROSS_MESSAGES = 100
"""Live stretches of the history that are less apart are read together, with what lies between: one command less."""

MAX_HELD_ARCHIVED = 8
"""As many live messages that lie in the history are held in the view, so that a restore needs no second read."""

MAX_HELD_ARCHIVED_BYTES = 4 * 1024
"""Larger ones are read from the history: what is held is sent with each view."""

AT_EXIT_SECONDS = 30
"""How long the end of the interpreter may be held up to store what is unsent."""

# --- archiving ------------------------------------------------------------------------------------------------------

MAKE_ROOM_ABOVE_BYTES = 6 * 1024 * 1024
"""Where a write would take the session document above this, room is made first: long before MongoDB's 16 MB, for a
server with a small cache may need minutes for one update of a document of that size.
"""

MAKE_ROOM_AGAIN_BYTES = 2 * 1024 * 1024
"""Where there was little to archive, it is looked for again when the document has grown by this much."""

MAKE_ROOM_TO_BYTES = 2 * 1024 * 1024
"""Where there is no room, this much of the document may be left.

Each segment rewrites the rest of a large document, so few large ones are made.
"""

ROOM_SEGMENT_BYTES, ROOM_SEGMENT_MESSAGES = 8 * 1024 * 1024, 10_000
"""What a segment holds at most that is archived to make room: as much as there is, within what one update takes."""

MAX_SEGMENT_BYTES = 15 * 1024 * 1024
"""What a segment holds at most: MongoDB takes 16 MB in it, too; one message may have 15 MB, besides its metrics."""

MAX_PLANNED_SEGMENT_BYTES = 4 * 1024 * 1024
"""A segment of fewer messages than a block is made at this size at the latest: a page reads whole segments."""

MAX_SEGMENTS_AT_ONCE = 200_000
"""More segments than this are in no document: each has a message at least, and a message 100 bytes."""

MAX_TTL_HOURS = 24 * 366 * 100
"""A hundred years: until then dates stay within what Python holds."""

# --- blobs ----------------------------------------------------------------------------------------------------------

BLOB_THRESHOLD_BYTES = 128 * 1024
"""A binary of this size is a blob: beside an inline megabyte every later append costs ten times as much."""

TEXT_BLOB_THRESHOLD_CHARACTERS = 1024 * 1024
"""A text of this many characters is a blob. Most texts are smaller, and in the document they can be searched."""

MAX_TEXT_BYTES = 15 * 1024 * 1024
"""A longer text is refused, as it is where it stays in the document."""

BLOB_CHUNK_BYTES = 255 * 1024
"""Size of every chunk but a file's last, in bytes: the default of all drivers."""

BLOB_CHUNKS_PER_INSERT = 32
"""Chunks sent with one insert: 8 MB, where PyMongo's own 48 MB would be copied three times on their way."""

IDS_PER_COMMAND = 1000
"""Ids in one command: 20 KB."""

DISCARD_SECONDS = 2.0
"""What a failed upload left is removed at once if that is quick; otherwise by a sweep."""

FRESH_UPLOAD_SECONDS = 3600.0
"""An upload older than this is made again before a commit names it. Far below any grace time of a sweep."""

SWEEP_GRACE_SECONDS = 24 * 3600
"""How long after its mark something orphaned is kept, unless the caller says otherwise."""

# --- listing and search ---------------------------------------------------------------------------------------------

DEFAULT_PAGE = 20
"""Sessions on a page and hits of a search, unless the caller says otherwise."""

MAX_LISTED_SESSIONS = 100
"""Sessions on one page: what a screen shows, and far below what one reply of MongoDB holds."""

TITLE_CHARACTERS = 80
"""A title made of the user's words has at most this many characters."""

TITLE_READ_CHARACTERS = 2 * TITLE_CHARACTERS
"""What is read of a text for a title; runs of white space in it will shrink."""

TITLE_READ_BYTES = 16 * 1024
"""A text that is stored as bytes cannot be cut by the server; a longer one is passed over."""

MAX_SEARCHED_BYTES = 32 * 1024
"""How much of a message's text can be searched, as UTF-8: each word is a key in an index."""

INDEXED_PER_BATCH = 200
"""Messages are read and indexed this many at a time; from a segment, all it has."""

INDEXED_BATCHES_BEHIND_A_TURN = 5
"""Batches that are indexed after a turn.

A conversation that was long before it was to be indexed is not gone through in one go: whoever closes the manager
waits for that.
"""

SESSIONS_PER_BATCH = 20
"""Sessions that one answer names when all are indexed: each is worked on before the next, and a cursor has a time."""

MAX_HITS_AT_ONCE = 1000
"""Hits are looked at this many at a time, where many belong to sessions that are gone."""

MAX_HIT_PAGES = 100
"""And no more often than this: a search that finds so few others is done."""

# --- how often a command is sent again ------------------------------------------------------------------------------

MAX_RECONNECTS = 2
"""A command or upload whose connection broke is sent again this often, beyond PyMongo's own retry on replica sets."""

MAX_BACK_OFF_SECONDS = 0.05
"""The longest pause between two attempts."""

MAX_WRITE_ATTEMPTS = 500
"""A writer that loses every race this often is not racing: something else keeps its command from matching."""

MAX_BEHIND_ATTEMPTS = 50
"""An archiver or indexer that never gets its turn in this many attempts leaves it to those that do."""

# --- leases ---------------------------------------------------------------------------------------------------------

LEASE_POLL_SECONDS = (0.02, 0.1)
"""How long a taker that waits pauses before it asks again: from, to."""

# --- watching metadata ----------------------------------------------------------------------------------------------

WATCH_AWAIT_MILLISECONDS = 500
"""For how long the server holds back its answer where nothing has changed; so long may an end of the thread take."""

WATCH_JOIN_SECONDS = 2.0
"""And so long whoever ends it waits for that, where a server does not answer at all."""

WATCH_FIRST_PAUSE_SECONDS, WATCH_LONGEST_PAUSE_SECONDS = 0.5, 30.0
"""After a loss the stream is opened anew at once; where that fails, after the first, and ever more up to the second."""

# --- threads and connections ----------------------------------------------------------------------------------------

THREADS = 16
"""Threads per client. Enough for 32 concurrent turns at 50 ms a command (``benchmarks/event_loop.py``)."""

THREADS_BEHIND = 2
"""Threads per client for archiving and the search, of all its sessions."""

MAX_EXECUTOR_CLOSINGS = 10
"""So often an executor may be closed by somebody else just when a call was to be given to it."""

VERSION_PATIENCE_SECONDS = 0.1
"""How long a caller of ``PoolReport.read`` waits for the server's version, once per client.

The caller may be an endpoint on an event loop, so a server that is slower than this is answered for by the next call.
"""

VERSION_TIMEOUT_SECONDS = 5.0
"""And how long the thread that asks may take, so that a server that hangs does not keep it for ever."""

MAX_UNCOUNTED_EVENTS = 300
"""Events of connections that wait to be counted: counted in a quarter of a millisecond."""

# --- web applications -----------------------------------------------------------------------------------------------

ENDING_SECONDS = 10
"""How long requests that do not end may hold up the end of their application."""

RETRY_AFTER_SECONDS = 5
"""When a client may try again: a replica set has a new primary within about 12 s; most outages are shorter."""

REQUEST_LEASE_WAIT_SECONDS = 1.0
"""How long a request waits for its session's lease, unless the application says otherwise."""
