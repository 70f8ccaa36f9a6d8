// Hands requests to the providers' own libraries: one line of JSON for each on stdin, one line with their answer on stdout.

import { LinearWebhookClient } from "@linear/sdk/webhooks";
import { signWebhookPayload, verifyWebhookSignature } from "@notionhq/client";
import * as octokit from "@octokit/webhooks-methods";
import "@shopify/shopify-api/adapters/node";
import { ApiVersion, shopifyApi } from "@shopify/shopify-api";
import { AwsLambdaReceiver } from "@zoom/rivet/users";

for (const level of ["debug", "error", "info", "log"]) console[level] = () => {}; // rivet and shopify-api log

const tried = (verify) => {
  try {
    return verify();
  } catch {
    return false;
  }
};

const accepts = {
  github: ({ secret, body, headers }) => octokit.verify(secret, body, headers["x-hub-signature-256"]),
  linear: ({ secret, body, headers }) =>
    tried(() => new LinearWebhookClient(secret).verify(Buffer.from(body), headers["linear-signature"])),
  notion: ({ secret, body, headers }) =>
    verifyWebhookSignature({ body, signature: headers["x-notion-signature"], verificationToken: secret }),
  shopify: async ({ secret, body, headers }) => {
    const shop = shopifyApi({
      apiKey: "key",
      apiSecretKey: secret,
      apiVersion: Object.values(ApiVersion)[0],
      hostName: "hooks.example.com",
      isEmbeddedApp: false,
    });
    const request = { headers: { "x-shopify-api-version": "x", "x-shopify-shop-domain": "a.myshopify.com", ...headers } };
    return (await shop.webhooks.validate({ rawBody: body, rawRequest: request, rawResponse: {} })).valid;
  },
  zoom: async ({ secret, body, headers }) => {
    const receiver = new AwsLambdaReceiver({ webhooksSecretToken: secret });
    receiver.init({ eventEmitter: { emit() {} } });
    const answer = await receiver.start()({ body, headers, isBase64Encoded: false }, {});
    return answer.statusCode === 200 && JSON.parse(answer.body);
  },
};

const signs = {
  github: async ({ secret, body }) => ({ "X-Hub-Signature-256": await octokit.sign(secret, body) }),
  notion: async ({ secret, body }) => ({
    "X-Notion-Signature": await signWebhookPayload({ body, verificationToken: secret }),
  }),
};

const lines = (await new Response(process.stdin).text()).trim().split("\n");
for (const asked of lines.map((line) => JSON.parse(line))) {
  const library = (asked.sign ? signs : accepts)[asked.name];
  process.stdout.write(`${JSON.stringify(await library(asked))}\n`);
}
