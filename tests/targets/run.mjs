// Runs a WASI program: `node run.mjs PROGRAM FOLDER`. The program reads the files of the folder.
import { readFile } from "node:fs/promises";
import { WASI } from "node:wasi";

const [program, folder] = process.argv.slice(2);
const wasi = new WASI({ version: "preview1", args: [program, "/files"], preopens: { "/files": folder } });
const { instance } = await WebAssembly.instantiate(await readFile(program), wasi.getImportObject());
process.exitCode = wasi.start(instance);
