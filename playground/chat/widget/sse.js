// Server-Sent Events from a `fetch` response: an EventSource can send neither a header nor a POST.

/**
 * Read events as they arrive.
 *
 * @param {ReadableStream<Uint8Array>} stream
 * @param {number} quietMs After so long without a byte (the server's pings are bytes) the connection counts as lost.
 * @yields {{event: string, data: string}}
 */
export async function* serverSentEvents(stream, quietMs) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let event = "message";
  let data = [];
  try {
    for (;;) {
      const { done, value } = await orQuiet(reader.read(), quietMs);
      if (done) return;
      // A "\r" at the end may be half of a "\r\n": it waits for what follows.
      const lines = (rest + value).split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line === "") {
          if (data.length) yield { event, data: data.join("\n") };
          event = "message";
          data = [];
          continue;
        }
        const [, field, content] = /^([^:]*)(?:: ?)?(.*)$/s.exec(line);
        if (field === "event") event = content;
        else if (field === "data") data.push(content);
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // Whoever stops reading hangs up.
  }
}

async function orQuiet(read, quietMs) {
  let timer;
  const quiet = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new TypeError("The connection is quiet.")), quietMs);
  });
  try {
    return await Promise.race([read, quiet]);
  } finally {
    clearTimeout(timer);
  }
}
