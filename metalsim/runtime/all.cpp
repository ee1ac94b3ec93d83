// The runtime as one translation unit.
#include "fiber.cpp"
#include "findings.cpp"
#include "scheduler.cpp"
#include "shadow.cpp"
#include "launch.cpp"
