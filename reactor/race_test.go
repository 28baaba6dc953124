//go:build race

package reactor

// RaceDetector says whether the race detector is on: such runs are shorter.
const RaceDetector = true
