// Package scripts holds those scripts that xdpd runs itself, so that the program works without this folder.
package scripts

import _ "embed" // of the scripts

// Pktgen is scripts/pktgen.
//
//go:embed pktgen
var Pktgen string
