// Package libxdpd carries the C library for applications of an xdpd, so that the program can write its sources out and have them compiled
// where they are to run. docs/libxdpd.md is its manual.
package libxdpd

import "embed"

// Sources are the C files and headers, in the folder src.
//
//go:embed src
var Sources embed.FS

// PreloadFlags is the file in Sources with the compiler's arguments for the library that xdpd exec preloads, of all C files together.
const PreloadFlags = "src/preload/cc.args"
