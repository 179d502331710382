// Read a wustore store with zarrita: times, and of every layer the shape, the type and the sha256 of each plane.
// node read_zarr.mjs STORE.zarr; zarrita must be in a node_modules folder beside this file or above it.
import { createHash } from "node:crypto";
import { resolve } from "node:path";
import FileSystemStore from "@zarrita/storage/fs";
import * as zarr from "zarrita";

const root = zarr.root(new FileSystemStore(resolve(process.argv[2])));
const group = await zarr.open.v3(root, { kind: "group" });
const document = group.attrs.wustore;
if (document.format !== "wustore" || document.version.split(".")[0] !== "1") throw new Error("not a store of 1.x");

const open = (name) => zarr.open.v3(root.resolve(name), { kind: "array" });
const layers = {};
for (const name of Object.keys(document.layers)) {
  const array = await open(name);
  const planes = [];
  for (let i = 0; i < document.n_images; i++) {
    const { data } = await zarr.get(array, [i, null, null]);
    planes.push(createHash("sha256").update(new Uint8Array(data.buffer, data.byteOffset, data.byteLength)).digest("hex"));
  }
  layers[name] = { shape: array.shape, dtype: array.dtype, planes };
}
const time = await zarr.get(await open("time"));
console.log(JSON.stringify({ times: Array.from(time.data, (t) => (Number.isNaN(t) ? null : t)), layers }));
