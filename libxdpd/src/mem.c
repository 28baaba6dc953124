/* mem.c: memory for data, in pieces of 4096 << order bytes. What is cut up stays so. */
#include "internal.h"

static uint32_t unit_of(uint32_t at) { return (at - S->heap) / 4096 + 1; }
static uint32_t at_of(uint32_t unit) { return S->heap + (unit - 1) * 4096; }

static void push(uint32_t unit, int order)
{
	S->next[unit - 1] = S->free[order];
	S->free[order] = unit;
}

static uint32_t get(int order)
{
	uint32_t unit = S->free[order];

	if (unit) {
		S->free[order] = S->next[unit - 1];
		return unit;
	}
	if (S->units - S->bump >= 1u << order) {
		unit = S->bump + 1;
		S->bump += 1u << order;
		return unit;
	}
	for (int o = order + 1; o < ORDERS; o++)
		if ((unit = S->free[o])) {
			S->free[o] = S->next[unit - 1];
			while (o-- > order) /* give the upper halves back */
				push(unit + (1u << o), o);
			return unit;
		}
	return 0;
}

/* mem_get gives a piece of the order, or of a lower one when there is none. */
uint32_t mem_get(uint8_t *order)
{
	for (int o = *order; o >= 0; o--) {
		uint32_t unit = get(o);
		if (unit) {
			*order = (uint8_t)o;
			S->used += 1u << o;
			return at_of(unit);
		}
	}
	return 0;
}

void mem_put(uint32_t at, uint8_t order)
{
	S->used -= 1u << order;
	push(unit_of(at), order);
}

/* mem_order is the order for a stream that would like one: half of the memory is for who has none. */
uint8_t mem_order(uint8_t order) { return S->used > S->units / 2 ? 0 : order; }
