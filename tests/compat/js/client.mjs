// One call of fal's JavaScript client, as a page or a server would make it; prints what came of it as a line of JSON.
//
//   node client.mjs MODE URL CALL ARGUMENTS
//
// MODE is how the client is pointed at falctl: "proxy" (proxyUrl) or "middleware" (requestMiddleware).
import { createFalClient } from "@fal-ai/client";
import { existsSync } from "node:fs";

const [mode, url, call, given] = process.argv.slice(2);
const a = JSON.parse(given);
const credentials = a.key ?? "local:local";

const local = (address) =>
  address
    .replace("https://queue.fal.run", `${url}/queue`)
    .replace("https://fal.run", `${url}/run`)
    .replace("https://rest.fal.ai", `${url}/fal/rest`);

const fal = createFalClient(
  mode === "proxy"
    ? { credentials, proxyUrl: { url: `${url}/api/fal/proxy`, when: "always" } }
    : { credentials, requestMiddleware: async (request) => ({ ...request, url: local(request.url) }) },
);

const pause = () => new Promise((resolve) => setTimeout(resolve, 20));
const until = async (condition) => {
  while (!(await condition())) await pause();
};
const completed = async (requestId) => {
  let status;
  await until(async () => {
    status = await fal.queue.status(a.app, { requestId, logs: true });
    return status.status === "COMPLETED";
  });
  return status;
};

const calls = {
  run: async () => fal.run(a.app, { input: a.input, startTimeout: 30 }),

  subscribe: async () => {
    const seen = [];
    let logs = [];
    const result = await fal.subscribe(a.app, {
      input: a.input,
      hint: a.hint,
      mode: a.mode ?? "polling",
      logs: true,
      pollInterval: 20,
      onQueueUpdate: (status) => {
        seen.push(status.status);
        if (status.logs) logs = status.logs.map((line) => line.message); // of a stream, the client has added them up
      },
    });
    return { ...result, seen, logs };
  },

  submit: async () => fal.queue.submit(a.app, { input: a.input, hint: a.hint, priority: a.priority }),

  stream: async () => {
    const stream = await fal.stream(a.app, { input: a.input });
    const events = [];
    for await (const event of stream) events.push(event);
    await stream.done();
    return events;
  },

  // A queued request behind one that runs: both are cancelled, first the one that waits.
  cancel: async () => {
    const running = await fal.queue.submit(a.app, { input: a.running });
    await until(() => existsSync(a.running.touch));
    const waiting = await fal.queue.submit(a.app, { input: a.waiting });
    const before = await fal.queue.status(a.app, { requestId: waiting.request_id });
    for (const { request_id } of [waiting, running]) await fal.queue.cancel(a.app, { requestId: request_id });
    const ends = [await completed(waiting.request_id), await completed(running.request_id)];
    let error;
    try {
      await fal.queue.result(a.app, { requestId: waiting.request_id });
    } catch (caught) {
      error = caught.status;
    }
    return { before, ends, error };
  },

  upload: async () => {
    const file = new File([Buffer.alloc(a.bytes, "0123456789")], a.name, { type: a.type });
    return fal.storage.upload(file);
  },

  "upload in the input": async () =>
    fal.run(a.app, { input: { ...a.input, image: new Blob(["twelve bytes"], { type: "text/plain" }) } }),

};

try {
  console.log(JSON.stringify({ result: await calls[call]() }));
} catch (error) {
  const told = { name: error.name, status: error.status, message: error.message, body: error.body };
  console.log(JSON.stringify({ error: told }));
}
process.exit(0);
