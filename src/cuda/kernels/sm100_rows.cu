// The ways of rows around the GEMMs of a layer.
#include "moe_rows.cuh"
