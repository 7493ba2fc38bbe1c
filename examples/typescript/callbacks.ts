// Receives what errand calls back with, and believes only what is signed with its secret.
//
//     CALLBACK_SECRET=whsec_... npm run callbacks        # on port 8098 of 127.0.0.1, or on CALLBACK_PORT

import { createServer, type IncomingMessage } from "node:http";
import type { AddressInfo } from "node:net";
import { Webhook, WebhookVerificationError } from "standardwebhooks";
import type { Event } from "./errand.js";

type Callback = { type: Event["type"]; timestamp: string; data: Event };

const webhook = new Webhook(process.env.CALLBACK_SECRET ?? "");

/** IDs, because a callback may come twice. An app keeps them in its database, with what it does about the callback. */
const received = new Set<string>();

/** The status of the answer. One of 2xx says that the callback need not come again. */
async function receive(request: IncomingMessage): Promise<number> {
  let body = "";
  for await (const part of request.setEncoding("utf8")) {
    body += part;
    // Nobody knows yet who sends it.
    if (body.length > 1024 * 1024) throw new Error("a callback of more than a mebibyte");
  }
  const headers = request.headers as Record<string, string>;
  // The body is looked at as it came: parsed and written anew, it would have another signature.
  const callback = webhook.verify(body, headers) as Callback;
  const id = headers["webhook-id"]!;
  if (!received.has(id)) console.log("callback:", callback.type, callback.data.job_id);
  received.add(id);
  return 204;
}

const server = createServer((request, answer) => {
  // 401: another secret has signed it, it was altered since, or it is more than five minutes old.
  const failed = (error: unknown) => (error instanceof WebhookVerificationError ? 401 : (console.error(error), 500));
  receive(request).catch(failed).then((status) => answer.writeHead(status).end());
});
server.listen(Number(process.env.CALLBACK_PORT ?? 8098), "127.0.0.1", () => {
  console.log(`listening on http://127.0.0.1:${(server.address() as AddressInfo).port}`);
});
