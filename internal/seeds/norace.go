//go:build !race

package seeds

// RaceDetector says whether the race detector is on: such runs are shorter.
const RaceDetector = false
