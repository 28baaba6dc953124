//go:build race

package seeds

const raceDetector = true
