// Every call of @huggingface/hub that the embedded Hub answers, against the Hub at HF_ENDPOINT; prints JSON.
// Run from the folder that holds node_modules.
import { mkdtemp, readFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as hub from "@huggingface/hub";

const hubUrl = process.env.HF_ENDPOINT;
const accessToken = process.env.HF_TOKEN;
const by = { hubUrl, accessToken };
const out = {};

async function all(generator) {
  const found = [];
  for await (const item of generator) found.push(item);
  return found;
}

async function refused(promise) {
  try {
    await promise;
  } catch (error) {
    return error.statusCode ?? error.name;
  }
  return "not refused";
}

const text = async (blob) => (blob === null ? null : await blob.text());

// What is there already.
const repo = "user/read";
out.whoami = (({ name, type }) => [name, type])(await hub.whoAmI(by));
out.models = (await all(hub.listModels(by))).map((model) => model.name).sort();
out.searched = (await all(hub.listModels({ ...by, search: { query: "READ", owner: "user" } }))).map((m) => m.name);
out.tagged = (await all(hub.listModels({ ...by, search: { tags: ["clip"] }, additionalFields: ["author", "sha"] }))).map(
  ({ name, author, sha, private: hidden }) => [name, author, sha, hidden],
);
out.first = (await all(hub.listModels({ ...by, limit: 1, sort: "lastModified" }))).length;
out.served = (await all(hub.listModels({ ...by, search: { inferenceProviders: ["hf-inference"] } }))).length;
out.datasets = (await all(hub.listDatasets(by))).map((dataset) => dataset.name);
out.spaces = (await all(hub.listSpaces(by))).map((space) => space.name);
out.anonymous = (await all(hub.listModels({ hubUrl }))).map((model) => model.name).includes("user/hidden");
const info = await hub.modelInfo({ ...by, name: repo, additionalFields: ["sha", "filePaths", "cardData"] });
out.info = [info.name, info.sha, info.filePaths, info.cardData.license];
out.older = (await hub.modelInfo({ ...by, name: repo, revision: "v1", additionalFields: ["sha"] })).sha;
out.dataset = (await hub.datasetInfo({ ...by, name: "user/images" })).name;
out.exists = [await hub.repoExists({ ...by, repo }), await hub.repoExists({ ...by, repo: "user/none" })];
out.access = [await refused(hub.checkRepoAccess({ ...by, repo })), await refused(hub.checkRepoAccess({ hubUrl, repo: "user/hidden" }))];
out.files = (await all(hub.listFiles({ ...by, repo, recursive: true }))).map(({ path, type, size }) => [path, type, size]);
out.folder = (await all(hub.listFiles({ ...by, repo, path: "deep", expand: true }))).map((f) => [f.path, f.lastCommit.title]);
out.commits = (await all(hub.listCommits({ ...by, repo, batchSize: 2 }))).map((commit) => [commit.title, commit.authors[0].username]);
out.count = await hub.countCommits({ ...by, repo });
out.there = [await hub.fileExists({ ...by, repo, path: "config.json" }), await hub.fileExists({ ...by, repo, path: "none" })];
const weights = await hub.fileDownloadInfo({ ...by, repo, path: "model.safetensors" });
out.weights = [weights.size, weights.etag, weights.xet === undefined];
out.pointer = (await text(await hub.downloadFile({ ...by, repo, path: "model.safetensors", raw: true }))).split("\n");
out.missing = await hub.fileDownloadInfo({ ...by, repo, path: "none" });
out.config = await text(await hub.downloadFile({ ...by, repo, path: "config.json" }));
out.hash = Buffer.from(
  await crypto.subtle.digest("SHA-256", await (await hub.downloadFile({ ...by, repo, path: "model.safetensors" })).arrayBuffer()),
).toString("hex");
const paths = await hub.pathsInfo({ ...by, repo, paths: ["model.safetensors", "deep", "none"], expand: true });
out.paths = paths.map(({ path, type, lfs, lastCommit }) => [path, type, lfs?.oid ?? null, lastCommit.title]);
const parsed = await hub.parseSafetensorsMetadata({ ...by, repo, computeParametersCount: true });
out.parsed = [parsed.sharded, parsed.parameterCount];
const cacheDir = await mkdtemp(join(tmpdir(), "snapshot-"));
const folder = await hub.snapshotDownload({ ...by, repo, cacheDir });
out.snapshot = await readFile(join(folder, "deep", "a.txt"), "utf8");

// What it makes, changes and takes away.
const made = { type: "model", name: "user/made" };
out.created = await hub.createRepo({ ...by, repo: made, visibility: "private", files: [{ path: "first.txt", content: new TextEncoder().encode("first") }] });
out.taken = await refused(hub.createRepo({ ...by, repo: made }));
const file = (path, content) => ({ path, content: new Blob([content]) });
await hub.uploadFiles({ ...by, repo: made, files: [file("a.txt", "a"), file("b/c.txt", "c"), file("w.safetensors", "w".repeat(1000))] });
await hub.uploadFile({ ...by, repo: made, file: file("d.txt", "d"), commitTitle: "one more" });
await hub.createBranch({ ...by, repo: made, branch: "dev" });
await hub.createBranch({ ...by, repo: made, branch: "gone" });
await hub.deleteBranch({ ...by, repo: made, branch: "gone" });
const committed = await hub.commit({
  ...by, repo: made, title: "both", branch: "dev",
  operations: [{ operation: "addOrUpdate", path: "e.txt", content: new Blob(["e"]) }, { operation: "delete", path: "a.txt" }],
});
out.committed = committed.commit.oid;
out.pulled = (await hub.commit({ ...by, repo: made, title: "proposal", isPullRequest: true, operations: [{ operation: "delete", path: "a.txt" }] })).pullRequestUrl;
await hub.deleteFile({ ...by, repo: made, path: "d.txt" });
await hub.deleteFiles({ ...by, repo: made, paths: ["a.txt"] });
out.left = (await all(hub.listFiles({ ...by, repo: made, recursive: true }))).map((f) => f.path);
out.foreign = [await refused(hub.deleteRepo({ ...by, repo: "other/theirs" })), await refused(hub.deleteFile({ ...by, repo: "other/theirs", path: "x" }))];
const data = { type: "dataset", name: "user/made-data" };
await hub.createRepo({ ...by, repo: data });
await hub.uploadFile({ ...by, repo: data, file: file("x.csv", "1,2") });
out.data = await text(await hub.downloadFile({ ...by, repo: data, path: "x.csv" }));
await hub.deleteRepo({ ...by, repo: data });
out.deleted = await hub.repoExists({ ...by, repo: data });

console.log(JSON.stringify(out));
