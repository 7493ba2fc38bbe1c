// A shop that has errand call tools for its users: what an app does with errand, from its first job to events and replies.
//
//     npm start        # against `errand dev`; ERRAND_URL and ERRAND_KEY name another server, AMQP_URL a broker

import { randomUUID } from "node:crypto";
import amqp from "amqplib";
import { Errand, told, type Envelope, type Job } from "./errand.js";

function readRepository(user: string, name: string): Envelope {
  return { id: randomUUID(), user_id: user, tool: "GITHUB_GET_REPO", arguments: { owner: "o", repo: name } };
}

type Reply = { reply: "final" | "held" | "rejected" | "duplicate"; message?: string } & Partial<Job>;

/** Publishes a job at the broker and waits for what became of it. */
async function replyOverAmqp(url: string, job: Envelope): Promise<[order: string, reply: Reply]> {
  const connection = await amqp.connect(url);
  try {
    const channel = await connection.createConfirmChannel();
    const { queue } = await channel.assertQueue("", { exclusive: true });
    return await new Promise((resolve, reject) => {
      const fail = (why: string) => () => reject(new Error(why));
      connection.on("error", reject).on("close", fail("the broker has closed the connection"));
      channel.on("error", reject).on("return", fail("errand has no such queue"));
      setTimeout(fail("no reply within a minute: publish the same again, or read the job over HTTP"), 60_000).unref();
      const receive = (message: amqp.ConsumeMessage | null) => {
        if (message === null) return reject(new Error("the queue of replies is gone"));
        const reply: Reply = JSON.parse(message.content.toString());
        if (reply.reply !== "held") resolve([message.properties.correlationId, reply]); // else `final` follows
      };
      channel.consume(queue, receive, { noAck: true }).catch(reject);
      const properties = { persistent: true, contentType: "application/json", replyTo: queue, correlationId: "order-17" };
      channel.publish("errand", "default", Buffer.from(JSON.stringify(job)), { ...properties, mandatory: true });
      channel.waitForConfirms().catch(reject);
    });
  } finally {
    await connection.close().catch(() => {}); // The broker may have closed it.
  }
}

const errand = new Errand(process.env.ERRAND_URL ?? "http://127.0.0.1:8080", process.env.ERRAND_KEY);

const job = await errand.run(readRepository("u-alice", "first"));
console.log("one job:", job.state, JSON.stringify(job.result ?? job.error));

const jobs = [0, 1, 2, 3, 4].map((n) => readRepository("u-alice", `repo-${n}`));
const id = await errand.batch(jobs, randomUUID());
for await (const event of errand.events({ batch: id })) console.log("event:", event.type, event.job_id ?? "");
const batch = told(await errand.api.GET("/v1/batches/{id}", { params: { path: { id } } }));
console.log("batch:", JSON.stringify(batch.counts));

if (process.env.AMQP_URL) {
  const [order, reply] = await replyOverAmqp(process.env.AMQP_URL, readRepository("u-alice", "last"));
  console.log("reply:", order, reply.reply, reply.state ?? reply.message);
}
